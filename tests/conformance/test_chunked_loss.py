"""The loss over a vocabulary by chunks is that of all logits at once, and never holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adaptkit.models.language import output_loss
from adaptkit.models.language.logit_tail import unchanged
from adaptkit.models.language.model import label_logits
from adaptkit.models.language.output_head import OutputHead
from adaptkit.models.language.output_loss import FULL_TILE, chunk_rows, figures, summed_loss
from adaptkit.recipe import parse_recipe
from adaptkit.registry import load_registry
from adaptkit.tasks._language import LanguageMetrics
from adaptkit.testing.bases import workshop
from adaptkit.testing.trial import Trial, make_trial

REGISTRY = load_registry()
TOLERANCE = 2e-6
CHUNK = 3
TASKS = {"bert": "masked-lm", "gpt2": "causal-lm", "llama": "causal-lm", "t5": "seq2seq"}
STRATEGIES: Mapping[str, dict[str, Any]] = {
    "full": {},
    "lora": {"r": 4, "lora_dropout": 0.0},
    "qlora": {"r": 4, "lora_dropout": 0.0},
    "prefix-tuning": {"num_virtual_tokens": 4},
    "peft:prompt-tuning": {"num_virtual_tokens": 4},
}


def trial(base: str, strategy: str, *, model: Mapping[str, Any] | None = None, **options: Any) -> Trial:
    """Returns a run before its first step, with all that trains a little off its first values."""
    rows = workshop().rows(TASKS[base])
    made = parse_recipe(
        {
            "model": {"name": workshop().base(base), **(model or {})},
            "task": {"name": TASKS[base], **({"join": False} if TASKS[base] != "seq2seq" else {})},
            "data": {"train": rows, "evaluation": rows, "max_length": 48},
            "strategy": {"name": strategy, **STRATEGIES[strategy], **options},
            "training": {"compute": "fp32", "loss_chunk_tokens": CHUNK, "effective_batch": 4, "max_steps": 2},
            "output": "runs/never-written",
        },
        resolver=REGISTRY,
    )
    return make_trial(made, REGISTRY.strategy(strategy)(made.strategy), REGISTRY).without_dropout().move_away()


def gradients(trial: Trial, loss: Tensor) -> Tensor:
    trial.model.zero_grad()
    loss.backward()
    found = [weights.grad.flatten() for weights in trial.job.trainable().values() if weights.grad is not None]
    return torch.cat(found)


def at_once(trial: Trial, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the loss as torch computes it from all logits."""
    there = label_logits(trial.model, batch, trial.task.kind)  # type: ignore[attr-defined]
    return cross_entropy(there.logits, there.labels, reduction="sum")


def assert_same(trial: Trial) -> None:
    (batch,) = trial.batches(10**6)
    count = trial.task.count(batch)
    assert count > 2 * CHUNK
    wanted = at_once(trial, batch).detach() / count
    for _ in range(2):  # The first pass of a model is another one than those after it.
        found = trial.task.loss(trial.model, batch).total / count
        assert float((found.detach() - wanted).abs() / wanted) <= 1e-6
        whole, chunked = gradients(trial, at_once(trial, batch) / count), gradients(trial, found)
        assert float((chunked - whole).norm() / whole.norm()) <= TOLERANCE


# Virtual tokens stand in front of a decoder's text.
SERVED = [
    (base, strategy)
    for base in TASKS
    for strategy in STRATEGIES
    if TASKS[base] == "causal-lm" or strategy in ("full", "lora", "qlora")
]


@pytest.mark.parametrize(("base", "strategy"), SERVED)
def test_loss_and_gradient_are_those_of_all_logits_at_once(base: str, strategy: str) -> None:
    assert_same(trial(base, strategy))


def test_a_lora_on_the_output_layer_gets_its_gradient() -> None:
    subject = trial("llama", "lora", target_modules=["lm_head", "q_proj"])
    assert any("lm_head" in name for name in subject.job.trainable())
    assert_same(subject)


@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_rows_of_new_tokens_in_the_output_layer_get_their_gradient(base: str) -> None:
    subject = trial(base, "lora", model={"new_tokens": ["<drug>", "<dose>"]})
    assert any("new_rows" in name for name in subject.job.trainable())
    assert_same(subject)


# -- what a model does to its logits --------------------------------------------------------------------

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
SIZES |= {"vocab_size": 50, "num_key_value_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.02}
ARCHITECTURES: Mapping[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 0.5},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 3.0},
    "gpt_neox": {},
}


def language_model(architecture: str) -> Any:
    config = transformers.AutoConfig.for_model(architecture, **SIZES, **ARCHITECTURES[architecture])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config)


class Strange(transformers.LlamaForCausalLM):
    """A model that does to its logits what nobody knows."""

    def forward(self, *arguments: Any, **inputs: Any) -> Any:
        output: Any = super().forward(*arguments, **inputs)
        output.logits = output.logits.softmax(-1) * 7
        return output


class InPlace(transformers.LlamaForCausalLM):
    """A model that overwrites its logits."""

    def forward(self, *arguments: Any, **inputs: Any) -> Any:
        output: Any = super().forward(*arguments, **inputs)
        output.logits *= 3
        return output


def strange(kind: type[Any]) -> Any:
    torch.manual_seed(0)
    return kind(transformers.LlamaConfig(**{**SIZES, "attention_dropout": 0.5}))


def causal_task() -> Any:
    task: Any = REGISTRY.make_task(trial("gpt2", "full").recipe.task)
    task.loss_chunk_tokens = CHUNK
    return task


def batch() -> dict[str, Tensor]:
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_caps_and_scales_behind_the_output_layer_are_kept_and_chunked(architecture: str) -> None:
    model, task = language_model(architecture).eval(), causal_task()
    for weights in model.parameters():
        weights.requires_grad_(weights.ndim == 1)
    wanted = model(**batch()).loss.detach() * 16
    for _ in range(2):
        with Sizes(model) as sizes:
            found = task.loss(model, batch()).total
        assert float((found.detach() - wanted).abs() / wanted) <= 1e-6
    assert all(size <= CHUNK * 50 for size in sizes.of_vocabulary(50))


@pytest.mark.parametrize("kind", [Strange, InPlace])
def test_what_is_not_known_is_left_to_the_model(kind: type[Any]) -> None:
    model, task = strange(kind), causal_task()
    for _ in range(2):
        torch.manual_seed(3)
        found = task.loss(model, batch()).total
        drawn = torch.rand(())
        torch.manual_seed(3)
        there = label_logits(model, batch(), "causal")
        torch.testing.assert_close(found, cross_entropy(there.logits, there.labels, reduction="sum"))
        assert torch.equal(drawn, torch.rand(())), "looking at a model for the first time draws nothing"


# -- memory -----------------------------------------------------------------------------------------------


class Sizes(TorchDispatchMode):
    """Takes down the shape of everything that is computed, but for views of a model's own tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []
        self._own = {tensor.untyped_storage()._cdata for tensor in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves(made) if isinstance(one, Tensor)]
        self.shapes += [one.shape for one in tensors if one.untyped_storage()._cdata not in self._own]
        return made

    def of_vocabulary(self, vocabulary: int) -> list[int]:
        """Returns the sizes of tensors that are logits, or a part of them."""
        return [shape.numel() for shape in self.shapes if len(shape) > 1 and shape[-1] == vocabulary]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("base", TASKS)
def test_no_more_logits_than_a_chunk_are_computed_together(base: str, grad: bool) -> None:
    subject = trial(base, "lora")
    (rows,) = subject.batches(10**6)
    vocabulary = subject.model.get_output_embeddings().weight.shape[0]
    with Sizes(subject.model) as sizes, torch.set_grad_enabled(grad):
        if grad:
            subject.task.loss(subject.model, rows).total.backward()
        else:
            LanguageMetrics(subject.task.kind, CHUNK).update(subject.model, rows)  # type: ignore[attr-defined]
    made = sizes.of_vocabulary(vocabulary)
    assert len(made) > subject.task.count(rows) / CHUNK
    assert max(made) <= CHUNK * vocabulary


@pytest.mark.parametrize(("dtype", "bytes_per_logit"), [(torch.float32, 4), (torch.bfloat16, 10)])
def test_a_frozen_output_layer_takes_few_bytes_a_logit(dtype: torch.dtype, bytes_per_logit: int) -> None:
    """bf16: 6 on a GPU; a CPU converts what it reads before it computes."""
    rows, vocabulary, hidden = 64, 20_000, 16
    layer = nn.Linear(hidden, vocabulary, bias=False, dtype=dtype).requires_grad_(False)
    states = torch.randn(4 * rows, hidden, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, vocabulary, (4 * rows,))
    with torch.profiler.profile(profile_memory=True) as profile:
        summed_loss(states, labels, head(layer), rows).backward()
    changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = used = 0
    for change in changes:
        used += change
        peak = max(peak, used)
    assert 0.9 * bytes_per_logit <= peak / (rows * vocabulary) <= 1.1 * bytes_per_logit


@pytest.mark.parametrize("architecture", ["gemma2", "gpt_neox"])
def test_without_values_every_place_may_be_a_label_and_chunks_are_chunks(architecture: str) -> None:
    """What a plan is made of: it has the shapes of a batch and no values."""
    task, given = causal_task(), batch()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = language_model(architecture)
        for weights in model.parameters():
            weights.requires_grad_(weights.ndim == 1)
        shapes = {name: torch.empty_like(tensor) for name, tensor in given.items()}
        with Sizes(model) as sizes:
            task.loss(model, shapes).total.backward()
    assert max(sizes.of_vocabulary(50)) == CHUNK * 50


def test_auto_is_256_mebibytes_of_logits_in_whole_tiles() -> None:
    for vocabulary in (480, 32_000, 50_257, 128_256, 262_144, 2_000_000):
        rows = chunk_rows("auto", vocabulary)
        assert rows % FULL_TILE == 0
        assert rows == FULL_TILE or rows * vocabulary * 4 <= 256 * 2**20 < (rows + FULL_TILE) * vocabulary * 4
    assert chunk_rows(7, 128_256) == 7


# -- the numbers ------------------------------------------------------------------------------------------


def head(layer: nn.Module) -> OutputHead:
    from adaptkit.models.language.logit_tail import unchanged

    return OutputHead(layer, unchanged, layer.weight.shape[0])  # type: ignore[arg-type, index]


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_bf16_is_as_close_to_exact_as_torch_at_once(trains: bool, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 500, bias=bias).requires_grad_(trains)
    states, labels = torch.randn(40, 64, requires_grad=True), torch.randint(0, 500, (40,))
    with torch.no_grad():
        states[0] = 8 * layer.weight[labels[0]] / layer.weight[labels[0]].norm() ** 2  # nearly certain
    inputs = [states, *(layer.parameters() if trains else ())]

    def all_of(loss: Tensor) -> list[Tensor]:
        return [loss.detach(), *torch.autograd.grad(loss / 40, inputs)]

    exact = all_of(cross_entropy(layer(states), labels, reduction="sum"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = all_of(cross_entropy(layer(states).float(), labels, reduction="sum"))
        chunked = all_of(summed_loss(states, labels, head(layer), 7))
    for true, one, other in zip(exact, plain, chunked, strict=True):
        assert one.dtype == other.dtype
        assert float((other - true).norm()) <= 1.1 * float((one - true).norm()) + 1e-7


def test_figures_are_those_of_all_logits_at_once() -> None:
    torch.manual_seed(0)
    layer, states, labels = nn.Linear(8, 50), torch.randn(20, 8), torch.randint(0, 50, (20,))
    labels[:5] = layer(states[:5]).argmax(-1)
    loss, right = figures(states, labels, head(layer), CHUNK)
    torch.testing.assert_close(loss, cross_entropy(layer(states), labels, reduction="sum"), rtol=1e-6, atol=0)
    assert int(right) == int((layer(states).argmax(-1) == labels).sum()) >= 5


def test_a_batch_without_labels_has_no_loss_and_no_gradient() -> None:
    model, task = language_model("gpt_neox"), causal_task()
    empty = {**batch(), "labels": torch.full_like(batch()["labels"], -100)}
    loss = task.loss(model, empty).total
    loss.backward()
    assert loss.item() == 0
    assert all(weights.grad is None or not weights.grad.any() for weights in model.parameters())


def test_a_second_pass_backwards_is_refused_not_wrong() -> None:
    layer, states = nn.Linear(8, 50), torch.randn(20, 8, requires_grad=True)
    loss = summed_loss(states, torch.zeros(20, dtype=torch.int64), head(layer), CHUNK)
    (loss / 20).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_run_is_told_its_chunk() -> None:
    subject = trial("llama", "lora")
    assert subject.task.loss_chunk_tokens == CHUNK
    subject.logits()
    assert subject.task.loss_chunk_tokens == CHUNK


class Widened(TorchDispatchMode):
    """Takes down the elements of every fp32 tensor that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves(made) if isinstance(one, Tensor) and one.dtype == torch.float32]
        self.largest = max([self.largest, *(one.numel() for one in tensors)])
        return made


def test_few_rows_of_16_bit_logits_become_fp32_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vocabulary = 24, 512
    torch.manual_seed(0)
    layer = nn.Linear(8, vocabulary, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    head = OutputHead(layer, unchanged, vocabulary)
    labels = torch.randint(vocabulary, (rows,))
    results = []
    for at_once in (rows, 2):
        monkeypatch.setattr(output_loss, "WIDENED_BYTES", 4 * vocabulary * at_once)
        states = torch.randn(rows, 8, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
        with Widened() as widened:
            loss, right = figures(states, labels, head, rows)
            trained = summed_loss(states, labels, head, rows)
            trained.backward()
        assert widened.largest == at_once * vocabulary
        results.append((loss, right, trained.detach(), states.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
