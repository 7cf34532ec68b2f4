"""A plan is held against what a run takes, and against the plan of the whole model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adaptkit.cli.app import app
from adaptkit.errors import FitError, RecipeError
from adaptkit.memory.planner import USABLE
from adaptkit.recipe import Recipe, parse_recipe
from adaptkit.registry import Registry, load_registry
from adaptkit.testing.bases import workshop
from benchmarks.memory_cases import CHECKPOINTING, SELECTIVE, Case, measure

CASES = (
    Case("llama", "lora", words=30),
    Case("llama", "qlora", words=30, training=CHECKPOINTING),
    Case("llama", "full", "fp32", words=30, training={"compute": "fp32", "micro_batch_tokens": 64}),
    Case("bert", "peft:ia3", words=30),
    Case("modernbert", "lora", words=30, training=SELECTIVE),
    Case("t5", "full", "fp32", words=30),
    Case("gpt2", "last-layers", "fp32", words=30),
)


# Of every kind: the built-in ones, what builds on the meta device, what draws or decomposes while it builds.
SOME = (
    *("full", "last-layers", "lora", "qlora", "prefix-tuning"),
    *("peft:vera", "peft:adalora", "peft:boft", "peft:ia3", "peft:tinylora", "peft:prompt-tuning"),
    "peft:trainable-tokens",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.base}-{case.strategy}")
def test_the_plan_is_what_the_run_takes(case: Case, folder: Path) -> None:
    measured = measure(case, folder, {})
    assert -0.02 < measured.error < 0.1, measured.plan.parts


def make_recipe(base: str, strategy: Any, task: str = "causal-lm", **training: Any) -> Recipe:
    shop = workshop()
    rows = shop.rows(task)
    return parse_recipe(
        {
            "model": {"name": shop.base(base)},
            "task": task,
            "data": {"train": rows, "evaluation": rows},
            "strategy": strategy,
            "training": training,
            "output": "unused",
        },
        resolver=load_registry(),
    )


def planner(recipe: Recipe, limit: int, *, gpu: bool = True) -> Any:
    import torch

    from adaptkit.memory.planner import Planner
    from adaptkit.runner import check, choose

    registry: Registry = load_registry()
    splits = check(recipe, *choose(recipe, registry), registry)
    return Planner(registry, splits, torch.device("cuda" if gpu else "cpu"), limit)


def test_every_strategy_can_be_planned_or_says_why_not() -> None:
    from adaptkit.planning import plan_strategies

    recipe = make_recipe("llama", "lora")
    asked = planner(recipe, 2**30)
    asked.registry.strategies = {name: asked.registry.strategies[name] for name in SOME}
    plans = plan_strategies(recipe, asked)
    without = {name for name, planned in plans.items() if not hasattr(planned.plan, "peak")}
    assert without == {"peft:trainable-tokens"}  # whose tokens a recipe must name


def test_what_was_left_to_the_memory_becomes_what_fits() -> None:
    from adaptkit.memory.auto import settle_training

    recipe = make_recipe("llama", "lora", micro_batch_tokens="auto")
    roomy, _ = settle_training(recipe, planner(recipe, 2**34))
    assert roomy.training.gradient_checkpointing is False
    assert roomy.training.offload == []
    asked = planner(recipe, 0)
    usual = asked.plan(roomy).needed
    tight, lines = settle_training(recipe, planner(recipe, int(usual / 0.97) - 1000))
    assert tight.training != roomy.training
    assert asked.plan(tight).needed < usual
    assert lines


@pytest.mark.parametrize("who", ["strategy", "base"])
def test_where_nothing_can_be_recomputed_a_pass_has_fewer_tokens(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptkit.memory import planner as planners
    from adaptkit.memory.auto import settle_training

    monkeypatch.setattr(planners, "can_recompute", lambda config: who == "strategy")
    strategy = "peft:adaption-prompt" if who == "strategy" else "lora"
    recipe = make_recipe("llama", strategy, micro_batch_tokens="auto")
    asked = planner(recipe, 0)
    most, least = (
        asked.plan(asked.changed(recipe, {"training.micro_batch_tokens": tokens})).needed
        for tokens in (4096, asked.longest_row(recipe))
    )
    assert least < most
    limit = int((least + most) / 2 / USABLE)
    settled, lines = settle_training(recipe, planner(recipe, limit))
    assert settled.training.gradient_checkpointing is False
    assert "still does not fit" not in "".join(lines)


def test_a_cpu_is_not_asked() -> None:
    from adaptkit.memory.auto import settle_training

    recipe = make_recipe("llama", "lora", micro_batch_tokens="auto")
    settled, lines = settle_training(recipe, planner(recipe, 0, gpu=False))
    assert (settled.training.micro_batch_tokens, settled.training.gradient_checkpointing) == (4096, False)
    assert lines == []


def least(recipe: Recipe) -> int:
    """Returns the bytes that a run needs when everything is done to need few."""
    from adaptkit.memory.auto import settle_training

    asked = planner(recipe, 0)
    return int(asked.plan(settle_training(recipe, asked)[0]).needed)


def test_the_first_strategy_that_fits_is_chosen() -> None:
    from adaptkit.memory.auto import settle_strategy
    from adaptkit.registry import AutoOptions

    recipe = make_recipe("llama", {"name": "auto", "among": ["full", "lora"]})
    assert isinstance(recipe.strategy, AutoOptions)
    chosen, lines = settle_strategy(recipe, recipe.strategy, planner(recipe, 2**34))
    assert chosen.strategy.name == "full"
    full, lora = (least(make_recipe("llama", name)) for name in ("full", "lora"))
    assert lora < full
    chosen, lines = settle_strategy(recipe, recipe.strategy, planner(recipe, int((full + lora) / 2 / USABLE)))
    assert chosen.strategy.name == "lora"
    assert lines[0].startswith("full: does not fit")
    with pytest.raises(FitError, match="no strategy of full, lora fits"):
        settle_strategy(recipe, recipe.strategy, planner(recipe, 2**20))


def written(tmp_path: Path, **changes: Any) -> str:
    shop = workshop()
    recipe: Mapping[str, Any] = {
        "model": shop.base("llama"),
        "task": "causal-lm",
        "data": {"train": shop.rows("causal-lm")},
        "strategy": "full",
        "output": str(tmp_path / "run"),
        **changes,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return str(path)


def test_the_command_says_what_fits(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", written(tmp_path), "--gpu", "24GB"])
    assert result.exit_code == 0, result.output
    assert "it fits" in result.output
    assert "optimizer" in result.output


def test_the_command_names_a_change_that_fits(tmp_path: Path) -> None:
    recipe = written(tmp_path)
    needed = least(make_recipe("llama", "full"))
    size = f"{(needed - 2**20) / USABLE / 2**20:.2f}MB"
    result = CliRunner().invoke(app, ["plan", recipe, "--gpu", size])
    assert isinstance(result.exception, FitError)
    (problem,) = result.exception.problems
    assert problem.fix is not None
    change = shlex.split(problem.fix.partition("GiB: ")[2])
    assert CliRunner().invoke(app, ["plan", recipe, *change, "--gpu", size]).exit_code == 0


def test_nothing_helps_where_the_context_alone_is_too_large(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", written(tmp_path), "--gpu", "100MB"])
    assert isinstance(result.exception, FitError)
    assert "no change of the recipe" in str(result.exception)


def test_on_a_gpu_too_selective_recomputation_keeps_what_attention_gave() -> None:
    from adaptkit.memory.auto import without_auto

    held: list[int] = []
    for how in (True, "selective", False):
        recipe = without_auto(make_recipe("llama", "lora", gradient_checkpointing=how, learning_rate=1e-3))
        held.append(planner(recipe, 2**33).plan(recipe).parts["activations"])
    assert held == sorted(set(held))


def test_where_kernels_are_fused_a_plan_is_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptkit.memory import fused
    from adaptkit.memory.auto import without_auto

    monkeypatch.setattr(fused, "liger_kernels", lambda: fused.STAND_INS)
    recipe = without_auto(make_recipe("llama", "lora", learning_rate=1e-3))
    plain = recipe.model_copy(update={"training": recipe.training.model_copy(update={"kernels": "torch"})})
    plans = [planner(one, 2**33).plan(one) for one in (recipe, plain)]
    assert plans[0].parts["activations"] < plans[1].parts["activations"]


def test_only_what_gives_the_same_is_planned_as_fused() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from adaptkit.memory import fused
    from adaptkit.models.efficiency.kernels import fuse_modules

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    counts = {}
    for kind in ("llama", "gemma2"):
        with torch.device("meta"):
            config = AutoConfig.for_model(kind, **sizes, vocab_size=100, num_key_value_heads=2, head_dim=16)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        counts[kind] = fuse_modules(model, fused.STAND_INS, fused._same_when_small)
    assert counts == {"llama": 2 * 2 + 1 + 2, "gemma2": 0}


def test_a_plan_for_a_gpu_leaves_out_what_waits_in_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptkit.memory.auto import without_auto
    from adaptkit.models.efficiency import host_activations

    monkeypatch.setattr(host_activations, "MIN_BYTES", 1)
    held = {}
    for gpu in (True, False):
        for offload in ([], ["activations"]):
            settings = {"gradient_checkpointing": True, "offload": offload, "learning_rate": 1e-3}
            recipe = without_auto(make_recipe("llama", "lora", **settings))
            held[gpu, bool(offload)] = planner(recipe, 2**33, gpu=gpu).plan(recipe).parts["activations"]
    assert held[True, True] < held[True, False]
    assert held[False, True] == held[False, False]  # a CPU's memory is the host's


def test_a_plan_for_a_gpu_has_the_output_layer_on_a_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptkit.memory.auto import without_auto
    from adaptkit.models.efficiency import host_embeddings

    monkeypatch.setattr(host_embeddings, "MIN_BYTES", 2**14)
    plans = {}
    for offload in ((), ("embeddings",)):
        recipe = without_auto(make_recipe("llama", "lora", offload=list(offload), learning_rate=1e-3))
        model = recipe.model.model_copy(update={"config": {"tie_word_embeddings": False}})
        recipe = recipe.model_copy(update={"model": model})
        plans[bool(offload)] = planner(recipe, 2**33).plan(recipe).parts
    gone = plans[False]["base weights"] - plans[True]["base weights"]
    visiting = sum(plans[True][part] - plans[False][part] for part in ("activations", "logits and loss", "workspace"))
    table = gone // 2
    assert table >= 2**14
    assert gone == 2 * table  # input and output
    assert 0 < visiting <= 1.1 * table


def test_recorded_passes_of_several_shapes_keep_gradients_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptkit.memory.auto import without_auto
    from adaptkit.training.graphs import MOST, PASSES_BEFORE, recordings

    class Shapes:
        """Batches that have so many shapes, each of them so often."""

        def __init__(self, times: list[int]) -> None:
            self.times = times

        def shapes(self, steps: int) -> dict[int, int]:
            return dict(enumerate(self.times))

    often = PASSES_BEFORE + 1
    assert [recordings(Shapes(times), 10) for times in ([often], [often, PASSES_BEFORE], [often] * 9)] == [1, 1, MOST]  # type: ignore[arg-type]
    parts = []
    for graphs in ("never", "auto"):
        settings = {"cuda_graphs": graphs, "learning_rate": 1e-3, "max_steps": 64, "effective_batch": 1}
        recipe = make_recipe("llama", "lora", **settings)
        dropless = recipe.strategy.model_copy(update={"lora_dropout": 0.0})
        recipe = without_auto(recipe.model_copy(update={"strategy": dropless}))
        parts.append(planner(recipe, 2**33).plan(recipe).parts)
    more = parts[1]["gradients"] - parts[0]["gradients"]
    assert more > 0
    assert more % parts[0]["adapter"] == 0
    assert more // parts[0]["adapter"] <= MOST - 1


def test_in_an_evaluation_a_recorded_pass_keeps_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptkit.memory import plan as plans
    from adaptkit.memory.auto import without_auto

    seen: list[Mapping[str, Any]] = []
    moments = plans.evaluation_moments

    def watched(*args: Any) -> Any:
        found = moments(*args)
        seen.append(found["evaluation"])
        return found

    monkeypatch.setattr(plans, "_recorded_passes", lambda *_: 1)
    monkeypatch.setattr(plans, "evaluation_moments", watched)
    recipe = without_auto(make_recipe("llama", "lora", effective_batch=1))
    plan = planner(recipe, 2**33).plan(recipe)
    assert seen[0]["gradients"] == plan.parts["adapter"]


@pytest.mark.parametrize("size", ["abc", "0GB", "-4GB", "24XB", ""])
def test_a_size_that_is_none_is_said_so(size: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", written(tmp_path), f"--gpu={size}"])
    if not size:  # this machine's
        assert result.exit_code == 0
        return
    assert isinstance(result.exception, RecipeError)
    assert "24GB" in str(result.exception)


def test_every_stage_is_planned(tmp_path: Path) -> None:
    stages = [{"strategy": "last-layers"}, {"strategy": "full"}]
    recipe = json.loads(Path(written(tmp_path)).read_text(encoding="utf-8"))
    del recipe["strategy"]
    Path(tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "stages": stages}), encoding="utf-8")
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "recipe.yaml"), "--gpu", "24GB"])
    assert result.exit_code == 0, result.output
    assert result.output.count("it fits") == 2
    assert result.output.index("stage 1 of 2: last-layers") < result.output.index("stage 2 of 2: full")


def test_a_change_with_brackets_can_be_pasted() -> None:
    from adaptkit.memory.fit import Fit

    changes = {"training.offload": ["embeddings", "activations"], "training.gradient_checkpointing": True}
    pasted = str(Fit(changes, plan=None))  # type: ignore[arg-type]
    assert shlex.split(pasted) == [
        "training.offload=[embeddings,activations]",
        "training.gradient_checkpointing=true",
    ]
    assert "'training.offload=[" in pasted  # a shell takes bare brackets for a pattern
