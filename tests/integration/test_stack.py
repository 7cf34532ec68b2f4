"""A stack holds one base: each run in it computes what it computes alone, and mixtures are sums of what was trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import adaptkit
from adaptkit.artifact.run import Run
from adaptkit.artifact.stack import Stack
from adaptkit.errors import AdaptkitError, ModelError, RecipeError
from adaptkit.models.base.loading import load_model as real_load_model
from adaptkit.models.sharing import shared_copy
from adaptkit.recipe import parse_recipe
from adaptkit.registry import load_registry

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["the film was great", "a dull plot", "the scene was so very weak and the actor was not good"]
ALL: dict[str, tuple[Any, dict[str, Any]]] = {
    "films": ("lora", {}),
    "tone": ({"name": "lora", "r": 2}, {"learning_rate": 1e-2}),
    "prefix": ("prefix-tuning", {}),
    "full": ("full", {}),
    "last": ("last-layers", {}),
    "probe": ("linear-probe", {}),
}
Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tiny_bert: Path, tiny_data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Returns the folder of a run of three steps; ``build("name", "lora")``."""
    folder = tmp_path_factory.mktemp("runs")

    def make(name: str, strategy: Any, *, model: Path = tiny_bert, task: Any = None, **training: Any) -> Path:
        if not (folder / name / "results.json").is_file():
            training = {"max_steps": 3, "learning_rate": 1e-2, **training}
            adaptkit.run(tiny.make_recipe(model, tiny_data, folder / name, strategy, task, **training))
        return folder / name

    return make


@pytest.fixture(scope="module")
def runs(build: Build) -> dict[str, Path]:
    return {name: build(name, strategy, **training) for name, (strategy, training) in ALL.items()}


@pytest.fixture
def whole(runs: dict[str, Path]) -> Stack:
    return adaptkit.stack(runs)


def base_of(stack: Stack) -> nn.Module:
    ((base, _),) = stack._begun.values()
    return base.module


def places(module: nn.Module) -> dict[int, int]:
    """Returns the size of each tensor by where it is."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return {tensor.data_ptr(): tensor.numel() for tensor in tensors if tensor.numel()}


def figures(run: Any) -> tuple[Any, dict[str, float]]:
    return run.predict(TEXTS), run.evaluate()


def test_a_run_in_a_stack_computes_bit_for_bit_what_it_computes_alone(whole: Stack, runs: dict[str, Path]) -> None:
    alone = {name: figures(adaptkit.load(folder)) for name, folder in runs.items()}
    assert len({str(said) for said in alone.values()}) == len(runs)
    assert figures(whole) == alone["films"], "it begins with the first"
    for name in (*runs, *reversed(runs), "tone", "tone", "films"):
        whole.use(name)
        assert figures(whole) == alone[name], name
    whole.use({"films": 0.5, "full": 0.5})
    whole.predict(TEXTS)
    for name in runs:
        whole.use(name)
        assert figures(whole) == alone[name], name


def test_the_base_stays_as_it_was_and_is_held_once(whole: Stack, runs: dict[str, Path]) -> None:
    base = base_of(whole)
    fresh = adaptkit.load(runs["films"]).load_base().module
    for name in ("full", "prefix", "films"):
        whole.use(name)
        whole.predict(TEXTS)
    whole.use({"full": 2.0, "last": -1.0})
    for (name, tensor), (_, wanted) in zip(base.state_dict().items(), fresh.state_dict().items(), strict=True):
        assert torch.equal(tensor, wanted), name
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert not any("lora" in name or "prefix" in name for name, _ in base.named_modules())
    assert base.config._attn_implementation == fresh.config._attn_implementation


@pytest.mark.parametrize("name", [name for name in ALL if name != "full"])
def test_a_run_adds_only_what_it_trained(name: str, whole: Stack, runs: dict[str, Path]) -> None:
    whole.use(name)
    shared = places(base_of(whole))
    own = sum(size for place, size in places(whole.model).items() if place not in shared)
    assert own == adaptkit.load(runs[name]).results["trainable_parameters"]


def test_the_files_of_the_base_are_read_once(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def counted(*arguments: Any, **values: Any) -> Any:
        reads.append("read")
        return real_load_model(*arguments, **values)

    monkeypatch.setattr("adaptkit.models.heads.new_head.load_model", counted)
    stack = adaptkit.stack(runs)
    for name in (*runs, {"films": 0.5, "tone": 0.5}):
        stack.use(name)
        stack.predict(TEXTS)
    assert reads == ["read"]


def parameters(run: Run) -> Mapping[str, Tensor]:
    """Returns the parameters of a run, merged."""
    return {name: parameter.detach() for name, parameter in run.strategy.merge(run.model).named_parameters()}


@pytest.mark.parametrize(
    "weights", [{"films": 0.5, "tone": 0.5}, {"films": 0.7, "full": 0.3, "last": -0.5}, {"films": 0.25, "probe": 0.25}]
)
def test_a_mixture_is_the_base_and_the_weighted_changes(
    weights: dict[str, float], whole: Stack, runs: dict[str, Path]
) -> None:
    whole.use(weights)
    found = dict(whole.model.named_parameters())
    merged = {name: parameters(adaptkit.load(runs[name])) for name in weights}
    for name, before in base_of(whole).named_parameters():
        if name.startswith("classifier."):
            wanted = sum(weight * merged[run][name] for run, weight in weights.items()) / sum(weights.values())
        else:
            wanted = before + sum(weight * (merged[run][name] - before) for run, weight in weights.items())
        torch.testing.assert_close(found[name], wanted)


@pytest.mark.parametrize("name", ["films", "full", "probe"])
def test_a_mixture_of_one_is_that_one(name: str, whole: Stack) -> None:
    whole.use(name)
    alone = whole.evaluate()
    whole.use({name: 1.0})
    assert whole.evaluate() == pytest.approx(alone, abs=1e-5)
    assert not any("lora" in module for module, _ in whole.model.named_modules())


def test_a_mixture_shares_what_no_run_has_changed(whole: Stack) -> None:
    whole.use({"last": 0.5, "probe": 0.5})
    shared = places(base_of(whole)).keys() & places(whole.model).keys()
    embedding = base_of(whole).get_parameter("bert.embeddings.word_embeddings.weight")
    assert embedding.data_ptr() in shared


@pytest.mark.parametrize(
    ("weights", "found", "advice"),
    [
        ({"films": 0.5, "prefix": 0.5}, "'prefix' cannot be mixed .*'prefix-tuning' trained", "full, last-layers"),
        ({"films": 0.5, "other": 0.5}, "there is no run 'other'", "films, tone"),
        ({}, "needs at least one run", "0.7"),
        ({"films": float("nan")}, "the weight of 'films' is nan", "a number"),
        ({"films": "half"}, "the weight of 'films' is 'half'", "a number"),
        ({"films": 0.5, "tone": -0.5}, "no average of the heads", "greater than 0"),
    ],
)
def test_a_mixture_that_means_nothing_is_refused(
    weights: dict[str, Any], found: str, advice: str, whole: Stack
) -> None:
    with pytest.raises(AdaptkitError, match=found) as error:
        whole.use(weights)
    assert advice in str(error.value)
    assert whole.predict(TEXTS) == adaptkit.load(whole.run.directory).predict(TEXTS), "the one in use stays"


def test_the_base_alone_is_asked_where_it_can_do_the_task(whole: Stack, build: Build, runs: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="alone cannot do text-classification"):
        whole.use(None)
    first = build("again", "full", model=runs["full"])
    again = parse_recipe(
        {**adaptkit.load(first).recipe.model_dump(), "output": str(first.with_name("kept"))}
        | {"model": {"name": str(runs["full"]), "head": "keep"}},
        resolver=load_registry(),
    )
    kept = adaptkit.stack([adaptkit.run(again).directory])
    kept.use(None)
    assert kept.evaluate() == pytest.approx(adaptkit.load(runs["full"]).evaluate(), abs=1e-6)
    assert kept.run.metrics == {}


def test_runs_of_other_labels_and_precisions_share_what_is_the_same(build: Build, runs: dict[str, Path]) -> None:
    three = build("three", "lora", task={"labels": ["good", "bad", "neither"]})
    names = {
        "films": runs["films"],
        "three": three,
        "few bits": build("qlora", "qlora"),
        "seed": build("s", "lora", seed=5),
    }
    alone = {name: figures(adaptkit.load(folder)) for name, folder in names.items()}
    stack = adaptkit.stack(names)
    for name in (*names, *reversed(names)):
        stack.use(name)
        assert figures(stack) == alone[name], name
    stack.use("films")
    held = places(stack.model).keys()
    for name in ("three", "seed"):
        stack.use(name)
        own = sum(size for place, size in places(stack.model).items() if place not in held)
        assert own == adaptkit.load(names[name]).results["trainable_parameters"]
    for name, why in (("three", "its labels are"), ("few bits", "qlora.* trained cannot become part")):
        with pytest.raises(ModelError, match=why):
            stack.use({"films": 0.5, name: 0.5})


def test_runs_on_four_bits_share_them(build: Build) -> None:
    names = {"a": build("qlora", "qlora"), "b": build("qlora-b", "qlora", learning_rate=2e-2)}
    names["c"] = build("prefix-nf4", {"name": "prefix-tuning", "num_virtual_tokens": 4})
    alone = {name: figures(adaptkit.load(folder)) for name, folder in names.items()}
    stack = adaptkit.stack(names)
    for name in ("a", "b", "a", "c", "b"):
        stack.use(name)
        assert figures(stack) == alone[name], name
    first, second = (stack._runs[name]._loaded.model for name in ("a", "b"))
    weights = [model.bert.encoder.layer[0].attention.self.query.base_layer.weight for model in (first, second)]
    assert weights[0].data_ptr() == weights[1].data_ptr()
    assert weights[0].quant_state.absmax.data_ptr() == weights[1].quant_state.absmax.data_ptr()


def test_language_models_write_in_a_stack_what_they_write_alone(tiny_data: dict[str, str], tmp_path: Path) -> None:
    config = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    new = {"name": "gpt2", "init": "random", "config": config, "tokenizer": {"vocab_size": 300}}

    def train(name: str, model: Any, strategy: str) -> Path:
        training = {"max_steps": 2, "effective_batch": 8, "learning_rate": 1e-2, "compute": "fp32"}
        values = {"model": model, "task": {"name": "causal-lm", "max_new_tokens": 4}, "data": tiny_data}
        values |= {"strategy": strategy, "training": training, "output": str(tmp_path / name)}
        return adaptkit.run(parse_recipe(values, resolver=load_registry())).directory

    base = str(train("base", new, "full"))
    names = {strategy: train(strategy, base, strategy) for strategy in ("lora", "full", "prefix-tuning")}
    alone = {name: figures(adaptkit.load(folder)) for name, folder in names.items()}
    stack = adaptkit.stack(names)
    for name in (*names, *reversed(names)):
        stack.use(name)
        assert figures(stack) == alone[name], name
    stack.use(None)
    assert figures(stack) == figures(adaptkit.load(names["lora"]).unadapted())
    stack.use({"lora": 1.0})
    assert stack.evaluate() == pytest.approx(alone["lora"][1], abs=1e-5)


@pytest.mark.parametrize("method", ["adalora", "osf", "p-tuning", "vera"])
def test_methods_of_peft_share_the_base(method: str, build: Build, runs: dict[str, Path]) -> None:
    names = {"films": runs["films"], method: build(method, {"name": f"peft:{method}"})}
    alone = {name: figures(adaptkit.load(folder)) for name, folder in names.items()}
    stack = adaptkit.stack(names)
    for name in (method, "films", method):
        stack.use(name)
        assert figures(stack) == alone[name]
    for tensor, wanted in zip(
        base_of(stack).state_dict().values(),
        adaptkit.load(runs["films"]).load_base().module.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(tensor, wanted)


def test_runs_of_different_bases_are_refused(
    build: Build, runs: dict[str, Path], tiny_bert_without_dropout: Path
) -> None:
    other = build("elsewhere", "lora", model=tiny_bert_without_dropout)
    with pytest.raises(RecipeError, match="'films' and 'other' are on different bases"):
        adaptkit.stack({"films": runs["films"], "other": other})


def test_a_list_names_runs_by_their_folders(runs: dict[str, Path]) -> None:
    assert adaptkit.stack([runs["films"], str(runs["tone"])]).names == ("films", "tone")
    with pytest.raises(RecipeError, match="two runs are called 'films'"):
        adaptkit.stack([runs["films"], runs["films"]])
    for nothing in ([], {}, str(runs["films"])):
        with pytest.raises(RecipeError, match="made of several runs"):
            adaptkit.stack(nothing)


def test_a_shared_copy_keeps_ties_and_leaves_the_original_alone() -> None:
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    copied: Any = shared_copy(model)
    assert copied[0].weight is copied[1].weight
    assert copied[0].weight is not model[0].weight
    assert copied[0].weight.data_ptr() == model[0].weight.data_ptr()
    assert copied[2].running_mean.data_ptr() == model[2].running_mean.data_ptr()
    copied[1].weight.requires_grad_(True)
    copied[1].weight.data = torch.zeros(3, 2)
    copied[2] = nn.Identity()
    assert model[0].weight.any()
    assert isinstance(model[2], nn.BatchNorm1d)
