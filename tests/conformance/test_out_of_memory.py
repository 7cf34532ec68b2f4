"""What does not fit into memory is cut smaller, and nothing else about a run changes.

The memory of these tests is a fake one: a pass over more tokens than it holds fails, at a random place on its way
through the model or back.
"""

from __future__ import annotations

import gc
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import texts
import tiny
import torch
from rich.console import Console
from torch import Tensor, nn

from adaptkit import runner, session
from adaptkit.artifact.run import load
from adaptkit.errors import FitError
from adaptkit.recipe import Recipe, parse_recipe
from adaptkit.registry import load_registry
from adaptkit.training.batches import TrainingBatches
from adaptkit.training.evaluation import Evaluation
from adaptkit.training.gradient import accumulate_gradient
from adaptkit.training.job import Job
from adaptkit.training.loop import train_step, training_steps

RUNS, STEPS = 100, 2
TOLERANCE = 2e-6
POOL, ROWS, BATCH = 40, 20, 10  # rows of the data, of a run and of a step
WORDS = " ".join(texts.TEXTS).split()
CLASSES = {"bert": "BertForMaskedLM", "llama": "LlamaForCausalLM", "t5": "T5ForConditionalGeneration"}
# manner of the model, task, strategy, training
KINDS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("bert", "text-classification", {"name": "full"}, {}),
    ("bert", "text-classification", {"name": "linear-probe"}, {}),
    ("bert", "text-classification", {"name": "prefix-tuning", "num_virtual_tokens": 4}, {}),
    ("bert", "masked-lm", {"name": "last-layers", "num_layers": 1}, {}),
    ("bert", "token-classification", {"name": "peft:ia3"}, {}),
    ("llama", "causal-lm", {"name": "full"}, {"gradient_checkpointing": True}),
    ("llama", "causal-lm", {"name": "lora", "r": 4, "lora_dropout": 0.0}, {"packing": True}),
    ("llama", "causal-lm", {"name": "qlora", "r": 4, "lora_dropout": 0.0}, {}),
    ("llama", "causal-lm", {"name": "peft:adalora", "init_r": 6, "target_r": 2}, {"packing": True}),
    ("t5", "seq2seq", {"name": "lora", "r": 4, "lora_dropout": 0.0}, {}),
    ("t5", "span-corruption", {"name": "peft:vera", "r": 8}, {}),
]
ONE_THING_AT_A_TIME = {"text-classification": {"head_dropout": 0.0}, "causal-lm": {"join": False}}
ONE_THING_AT_A_TIME |= {"masked-lm": {"join": False}, "span-corruption": {"join": False}}
ONE_THING_AT_A_TIME |= {"seq2seq": {"generate_rows": 8, "max_new_tokens": 3}}
REGISTRY = load_registry()


class Memory:
    """A memory that holds the activations of so many tokens; a pass over more runs out of it, somewhere.

    Args:
        model: What is passed.
        tokens: Padded tokens that fit.
        seed: Of the places at which it runs out.

    Attributes:
        failures: How often it ran out.
        largest: Tokens of the largest pass that was done.
    """

    def __init__(self, model: nn.Module, tokens: int, seed: int = 0) -> None:
        self.tokens, self.failures, self.largest = tokens, 0, 0
        self._random, self._place, self._backward, self._passed = random.Random(seed), -1, False, 0
        self._modules = sum(1 for _ in model.modules())
        self._handles = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        self._handles += [
            module.register_forward_hook(self._go_on) for module in model.modules() if module is not model
        ]
        self._handles.append(model.register_forward_hook(self._end))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, _: nn.Module, __: Any, inputs: dict[str, Any]) -> None:
        ids = inputs.get("input_ids")
        tokens = 0 if ids is None else ids.numel()  # None: a step of a seq2seq model that writes
        fits = tokens <= self.tokens
        self._passed = 0
        self._place = -1 if fits else self._random.randrange(self._modules)
        self._backward = self._random.random() < 0.5 and torch.is_grad_enabled()
        if fits:
            self.largest = max(self.largest, tokens)

    def _go_on(self, _: nn.Module, __: Any, output: Any) -> None:
        self._passed += 1
        if self._passed - 1 == self._place:
            self._run_out(output)

    def _end(self, _: nn.Module, __: Any, output: Any) -> None:
        if self._place >= 0:  # what was chosen comes before no other module, or no gradient goes through it
            self._place, self._backward = -1, False
            self._run_out(None)

    def _run_out(self, output: Any) -> None:
        if self._backward and isinstance(output, Tensor) and output.requires_grad:
            self._place = -1
            output.register_hook(self._fail)
        else:
            self._fail()

    def _fail(self, gradient: Tensor | None = None) -> None:
        self.failures += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@contextmanager
def memory(model: nn.Module, tokens: int, seed: int = 0) -> Iterator[Memory]:
    made = Memory(model, tokens, seed)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def quick_collection() -> Iterator[None]:
    """Hides what there is by now from the garbage collector, which looks for what a failed pass has left."""
    gc.freeze()
    yield
    gc.unfreeze()


def lines(task: str) -> list[dict[str, Any]]:
    """Returns rows of 1 to 20 words; labels that pull in one direction, for what is left of two is mostly rounding."""
    generator = random.Random(0)
    made = []
    for row in range(POOL):
        words = generator.choices(WORDS, k=generator.randint(1, 20))
        text = " ".join(words)
        made.append(
            {
                "text-classification": {"text": text, "label": "most" if row % 8 else "few"},
                "token-classification": {"tokens": words, "tags": ["long" if len(w) > 4 else "short" for w in words]},
                "seq2seq": {"source": text, "target": " ".join(words[::-2])},
            }.get(task, {"text": text + " so"})
        )
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a model without dropout for each family, and rows for each task."""
    import transformers

    folder = tmp_path_factory.mktemp("memory")
    for manner, name in CLASSES.items():
        config = texts.config(manner)
        config.classifier_dropout = 0.0
        with torch.random.fork_rng():
            torch.manual_seed(0)
            getattr(transformers, name)(config).save_pretrained(folder / manner)
        texts.tokenizer(manner).save_pretrained(folder / manner)
    for task in {task for _, task, _, _ in KINDS}:
        rows = "".join(json.dumps(row) + "\n" for row in lines(task))
        (folder / f"{task}.jsonl").write_text(rows, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def make(folder: Path) -> Callable[..., tuple[Job, Recipe]]:
    """Makes the job of a kind, whose trained tensors are not where they start."""

    def made(kind: tuple[str, str, dict[str, Any], dict[str, Any]]) -> tuple[Job, Recipe]:
        manner, task, strategy, training = kind
        recipe = parse_recipe(
            {
                "model": {"name": str(folder / manner), "precision": None if strategy["name"] == "qlora" else "fp32"},
                "task": {"name": task, **ONE_THING_AT_A_TIME.get(task, {})},
                "data": {"train": str(folder / f"{task}.jsonl"), "max_length": 64},
                "strategy": strategy,
                "training": {"effective_batch": BATCH, "compute": "fp32", "max_grad_norm": None, **training}
                | {"cache_frozen_features": False, "micro_batch_tokens": 100_000},
                "output": str(folder / "run"),
            },
            resolver=REGISTRY,
        )
        job, _ = tiny.make_job(recipe)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in job.trainable().values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return job, recipe

    return made


def gradients(job: Job) -> Tensor:
    """Returns the gradient of all that trains, float64 ``(parameters,)``."""
    trained = job.trainable().values()
    return torch.cat([parameter.grad.flatten().double() for parameter in trained if parameter.grad is not None])


class Comparing:
    """Before each step of an optimizer, compares its gradient with that of the effective batch in one pass.

    Args:
        job: Whose optimizer.
        whole: Its batches as they would be with memory enough.
    """

    def __init__(self, job: Job, whole: TrainingBatches, memory: Memory) -> None:
        self.job, self.whole, self.memory = job, whole, memory
        self.off: list[float] = []
        self._step = job.optimizer.step

    def __call__(self) -> None:
        found, kept = gradients(self.job), {name: p.grad for name, p in self.job.trainable().items()}
        self.job.model.zero_grad()
        limit, self.memory.tokens = self.memory.tokens, 10**9
        batches = self.whole.at(self.job.step)
        accumulate_gradient(self.job, batches, sum(self.job.task.count(batch) for batch in batches))
        wanted, self.memory.tokens = gradients(self.job), limit
        self.off.append(float((found - wanted).norm() / wanted.norm()))
        for name, parameter in self.job.trainable().items():
            parameter.grad = kept[name]
        self._step()


def random_run(
    job: Job, recipe: Recipe, features: list[Any], start: dict[str, Tensor], seed: int
) -> tuple[Memory, list[float]]:
    """Trains some of the rows in a random memory that holds the longest of them, and returns how far it was off."""
    generator = random.Random(seed)
    rows = generator.sample(features, ROWS)
    made: Any = job.batches

    def batches(tokens: int) -> TrainingBatches:
        settings = recipe.training.model_copy(update={"micro_batch_tokens": tokens, "seed": seed})
        return TrainingBatches(rows, job.task, made._tokenizer, settings, pack_to=made._pack_to)

    with torch.no_grad():
        for name, parameter in job.trainable().items():
            parameter.copy_(start[name])
    whole = batches(100_000)
    longest = max(job.task.length(row) for row in rows)
    job.batches, job.step = batches(longest * generator.randint(2, BATCH)), generator.randrange(3)
    job.total_steps, job.rehearsals = job.step + STEPS, generator.randrange(3)
    step = job.optimizer.step
    with memory(job.model, generator.randint(longest, 4 * longest), seed) as limited:
        job.optimizer.step = comparing = Comparing(job, whole, limited)  # type: ignore[method-assign, assignment]
        try:
            list(training_steps(job))
        finally:
            job.optimizer.step = step  # type: ignore[method-assign]
            job.model.zero_grad()
    assert len(comparing.off) == STEPS
    return limited, comparing.off


def test_of_a_hundred_random_runs_all_finish_with_the_gradient_of_the_uninterrupted_run(
    make: Callable[..., tuple[Job, Recipe]],
) -> None:
    jobs = [
        (job, recipe, list(job.batches.features), tiny.copied(job.trainable()))  # type: ignore[attr-defined]
        for job, recipe in map(make, KINDS)
    ]
    gc.freeze()
    runs = [random_run(*jobs[run % len(jobs)], seed=run) for run in range(RUNS)]
    assert sum(limited.failures > 0 for limited, _ in runs) > RUNS / 2, "the memory was hardly ever short"
    worst = [max(off) for _, off in runs]
    assert max(worst) <= TOLERANCE, sorted(worst)[-5:]


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Memory]]:
    """Gives every run of a session a memory of its own: ``short_memory(tokens)``; returns those memories."""

    def shorten(tokens: int, *, rehearsing: bool = False) -> list[Memory]:
        made: list[Memory] = []
        build = session.build_model

        def built(*arguments: Any, **options: Any) -> Any:
            adapted = build(*arguments, **options)
            made.append(Memory(adapted.model, tokens))
            return adapted

        monkeypatch.setattr(session, "build_model", built)
        monkeypatch.setattr(session, "has_own_memory", lambda device: rehearsing)
        return made

    return shorten


def run(recipe: Recipe, **options: Any) -> tuple[Path, str]:
    """Runs a recipe, and returns its folder and what was printed."""
    console = Console(file=StringIO(), width=200)
    runner.run(recipe, console=console, **options)
    return Path(recipe.output), console.file.getvalue()  # type: ignore[attr-defined]


def logged(folder: Path, key: str) -> dict[int, float]:
    """Returns a figure of the log by step."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line[key] for line in read if key in line}


def weights(job: Job) -> dict[str, Tensor]:
    return tiny.every_tensor(job.model)


def train(job: Job) -> None:
    """Trains to the last step, with the random numbers of a run of its own."""
    torch.manual_seed(0)
    list(training_steps(job))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def counting_job(recipe: Recipe) -> Job:
    """Makes a job with dropout whose model counts its passes in training, as running statistics do."""
    job, _ = tiny.make_job(recipe)
    job.model.register_buffer("passes", torch.zeros(1))

    def count(model: Any, _: Any) -> None:
        if model.training:
            model.passes += 1

    job.model.register_forward_pre_hook(count)
    job.beginning.__init__(job.model)  # type: ignore[misc]
    return job


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_a_run_that_was_cut_is_the_one_that_was_cut_so_from_the_start(
    strategy: str, recipe: Callable[..., Recipe]
) -> None:
    """To the bit, dropout and running statistics included: of the failed passes nothing is left."""
    job, other = counting_job(recipe(strategy)), counting_job(recipe(strategy))
    with memory(job.model, 100) as limited:
        train(job)
    assert limited.failures
    other.batches.tokens = job.batches.tokens
    train(other)
    assert_same(weights(job), weights(other))
    assert job.batches.tokens < 256


@pytest.mark.parametrize("strategy", ["full", "peft:adalora", "linear-probe"])
def test_a_rehearsal_leaves_no_trace(strategy: str, recipe: Callable[..., Recipe]) -> None:
    chosen = {"name": strategy, "init_r": 6, "target_r": 2} if strategy == "peft:adalora" else strategy
    job, other = counting_job(recipe(chosen)), counting_job(recipe(chosen))
    told: list[str] = []
    job.rehearsals, job.tell = 2, told.append
    train(job)
    train(other)
    assert_same(weights(job), weights(other))
    assert torch.equal(*(each.model.get_buffer("passes") for each in (job, other)))
    longest = job.batches.size(*job.batches.longest(job.total_steps))
    assert told == [f"the longest batch, {longest:,} tokens, fits into memory"] * 2


def test_after_a_rehearsal_nothing_fails_any_more(recipe: Callable[..., Recipe]) -> None:
    job, _ = tiny.make_job(recipe("lora"))
    told: list[str] = []
    job.rehearsals, job.tell = 1, told.append
    with memory(job.model, 100) as limited:
        train_step(job)
        failures, tokens = limited.failures, job.batches.tokens
        list(training_steps(job))
    assert failures == limited.failures == len(told) - 1
    assert job.batches.tokens == tokens <= 100
    assert "from step 1 on at most" in told[-2]


def test_a_row_that_does_not_fit_ends_the_run_and_leaves_the_model_as_it_was(recipe: Callable[..., Recipe]) -> None:
    job, _ = tiny.make_job(recipe("full"))
    before = weights(job)
    with (
        memory(job.model, 1),
        pytest.raises(FitError, match=r"a row of [0-9]+ tokens does not fit into memory") as caught,
    ):
        train_step(job)
    assert caught.value.exit_code == 5
    assert "data.max_length" in str(caught.value)
    assert_same(weights(job), before)
    assert job.step == 0
    assert all(parameter.grad is None for parameter in job.model.parameters())


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[5], KINDS[9]], ids=["classes", "tokens", "generated texts"])
def test_an_evaluation_gives_the_same_figures(kind: Any, make: Callable[..., tuple[Job, Recipe]]) -> None:
    job, _ = make(kind)
    made: Any = job.batches
    arguments = (job.wrapped, job.task, made.features, made._tokenizer, job.numerics, 100_000)
    expected = Evaluation(*arguments).figures()
    shrunk: list[int] = []
    with memory(job.model, 100) as limited:
        figures = Evaluation(*arguments, shrunk.append).figures()
    assert figures == pytest.approx(expected, rel=1e-5)
    assert limited.failures == len(shrunk) > 0
    assert shrunk == sorted(shrunk, reverse=True)
    with memory(job.model, 1), pytest.raises(FitError, match="a row of"):
        Evaluation(*arguments).figures()


def test_an_evaluation_asks_for_room_before_it_cuts(make: Callable[..., tuple[Job, Recipe]]) -> None:
    job, _ = make(KINDS[0])
    made: Any = job.batches
    asked: list[int] = []
    shrunk: list[int] = []
    with memory(job.model, 100) as limited:

        def make_room() -> bool:
            asked.append(limited.failures)
            if len(asked) == 1:
                limited.tokens *= 100
            return len(asked) == 1

        Evaluation(
            job.wrapped, job.task, made.features, made._tokenizer, job.numerics, 100_000, shrunk.append, make_room
        ).figures()
    assert (asked, shrunk) == ([1], [])


# -- whole runs ----------------------------------------------------------------------------------------


def without_evaluation(data: dict[str, str]) -> dict[str, str]:
    return {"train": data["train"]}


def test_a_run_that_was_cut_resumes_to_the_same_bits(
    recipe: Callable[..., Recipe], tiny_data: dict[str, str], short_memory: Callable[..., list[Memory]]
) -> None:
    memories = short_memory(100)
    every = {"save_every": 1 / 3, "epochs": 1, "keep_checkpoints": 9}
    cut = recipe("lora", data=without_evaluation(tiny_data), **every)
    folder, printed = run(cut)
    assert printed.count("does not fit into memory") == memories[0].failures > 0
    assert all(0 < tokens <= 128 for tokens in logged(folder, "train/micro_batch_tokens").values())
    adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    log = logged(folder, "train/loss")
    for checkpoint in sorted((folder / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    shutil.rmtree(folder / "adapter")
    (folder / "results.json").unlink()
    run(cut, resume=True)
    assert memories[1].failures == 0, "it has forgotten what did not fit"
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    assert logged(folder, "train/loss") == log


def test_where_memory_is_short_a_run_tries_the_longest_batches_before_its_first_step(
    recipe: Callable[..., Recipe], short_memory: Callable[..., list[Memory]]
) -> None:
    memories = short_memory(100, rehearsing=True)
    folder, printed = run(recipe("lora", epochs=1))
    lines = printed.splitlines()
    kinds = [line.split(" ")[0:3] for line in lines if "into memory" in line]
    assert kinds[0] == ["an", "evaluation", "batch"]
    assert kinds[-1] == ["the", "longest", "batch,"]
    assert logged(folder, "train/micro_batch_tokens").keys() == {1}
    results = load(folder).results
    assert results["planned_peak_bytes"] == sum(results["planned_peak_parts"].values()) > 0
    assert "GiB planned" in printed
    assert memories[0].failures == printed.count("does not fit into memory")


def test_memory_that_runs_out_elsewhere_is_no_traceback(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.optim.AdamW, "step", no_room)
    with pytest.raises(FitError, match="the run does not fit into memory") as caught:
        run(recipe("full", epochs=1))
    assert caught.value.problems[0].where == "behind step 0"


def test_predictions_are_the_same(recipe: Callable[..., Recipe], tiny_data: dict[str, str]) -> None:
    folder, _ = run(recipe("lora", epochs=1))
    finished = load(folder)
    file = tiny_data["evaluation"]
    expected = finished.predict_file(file)
    with memory(finished.model, 60) as limited:
        found = finished.predict_file(file)
    assert limited.failures
    assert [row["label"] for row in found] == [row["label"] for row in expected]
