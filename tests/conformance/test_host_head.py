"""An output layer that waits in the host's memory gives what it gives on the device, and comes once for a pass."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptkit.models.efficiency import host_embeddings
from adaptkit.models.efficiency.host_head import HostLinear, Visit, visit_of, wait_in_host
from adaptkit.registry import load_registry
from adaptkit.tasks._generation import generate
from adaptkit.testing.subject import Subject
from adaptkit.testing.trial import ALL_TOKENS, Trial, make_trial

TOLERANCE = 2e-6


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Visit]]:
    """All visits that begin."""
    begun: list[weakref.ref[Visit]] = []
    original = Visit.__init__

    def begin(self: Visit, layer: HostLinear) -> None:
        begun.append(weakref.ref(self))
        original(self, layer)

    monkeypatch.setattr(Visit, "__init__", begin)
    return begun


def trial(base: str, *, tied: bool = True, **training: Any) -> Trial:
    registry = load_registry()
    subject = Subject(registry.strategy("lora"), {"r": 4}, base)
    recipe = subject.recipe(**training)
    model = recipe.model.model_copy(update={"config": {} if tied else {"tie_word_embeddings": False}})
    return make_trial(recipe.model_copy(update={"model": model}), subject.make(), registry).move_away()


def waiting(made: Trial) -> Trial:
    """Lets the output layer wait, as on a GPU."""
    wait_in_host(made.model.get_output_embeddings())  # type: ignore[operator]
    return made


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8), (0, 8)])
def test_the_layer_computes_what_a_linear_layer_does(shape: tuple[int, ...], bias: bool, autocast: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(8, 11, bias=bias).requires_grad_(False)
    layer = nn.Linear(8, 11, bias=bias).requires_grad_(False)
    layer.load_state_dict(plain.state_dict())
    wait_in_host(layer)
    found = []
    for module in (plain, layer):
        states = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = module(states)
        logits.float().square().sum().backward()
        found.append((logits, states.grad))
    assert found[0][0].dtype == found[1][0].dtype
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2 if autocast else 1e-5, atol=1e-2 if autocast else 1e-6)
    assert layer.state_dict().keys() == plain.state_dict().keys()


def test_logits_can_be_overwritten_without_more_memory() -> None:
    layer = nn.Linear(8, 12).requires_grad_(False)
    wait_in_host(layer)
    logits = layer(torch.ones(3, 8, requires_grad=True))
    with torch.no_grad():
        logits.detach().mul_(2)
    assert "Strided" not in type(logits.grad_fn).__name__  # autograd's way back to what a view was taken of


def test_the_weight_is_there_as_long_as_somebody_holds_the_visit(visits: list[weakref.ref[Visit]]) -> None:
    layer = nn.Linear(8, 12).requires_grad_(False)
    wait_in_host(layer)
    assert isinstance(layer, HostLinear)
    held = layer.visit()
    for _ in range(3):
        layer(torch.ones(1, 8))
    assert len(visits) == 1
    assert [len(part) for part in held.weight()] == [9, 3]
    parts = [weakref.ref(part) for part in held.weight()]
    del held
    assert [part() for part in parts] == [None, None]
    layer(torch.ones(1, 8))
    assert len(visits) == 2
    assert visits[1]() is None


@pytest.mark.parametrize(("base", "tied"), [("llama", False), ("llama", True), ("t5", True)])
def test_a_run_learns_the_same(base: str, tied: bool, visits: list[weakref.ref[Visit]]) -> None:
    plain, moved = trial(base, tied=tied), waiting(trial(base, tied=tied))
    batches = plain.batches(ALL_TOKENS)
    wanted, found = plain.without_dropout().gradient(batches), moved.without_dropout().gradient(batches)
    assert float((found - wanted).norm() / wanted.norm()) <= TOLERANCE
    assert visits
    visits.clear()
    moved.gradient(batches)
    assert len(visits) == len(batches)
    gc.collect()
    assert [visit() for visit in visits] == [None] * len(batches)
    assert moved.evaluate() == pytest.approx(plain.evaluate(), rel=1e-5)
    torch.testing.assert_close(moved.logits(), plain.logits())


def test_the_weight_comes_once_for_a_text(visits: list[weakref.ref[Visit]]) -> None:
    plain, moved = trial("llama"), waiting(trial("llama"))
    batch = plain.batches(ALL_TOKENS)[0]
    prompts = {key: batch[key] for key in ("input_ids", "attention_mask")}
    texts = [generate(made.model.eval(), prompts, made.adapted.base.tokenizer, 6, "causal") for made in (plain, moved)]
    assert texts[0] == texts[1]
    assert len(visits) == 1
    assert visits[0]() is None


def test_what_is_more_than_a_linear_layer_stays() -> None:
    class Scaled(nn.Linear):
        pass

    made = trial("llama", tied=False)
    made.model.get_output_embeddings().__class__ = Scaled  # type: ignore[operator]
    assert "lm_head.weight" not in host_embeddings.frozen_tables(made.model)
    assert visit_of(made.model) is None


@pytest.mark.gpu
@pytest.mark.parametrize("tied", [False, True])
def test_on_a_gpu_an_output_layer_in_the_host_takes_memory_only_in_a_visit(tied: bool) -> None:
    layer = nn.Linear(1024, 4096, bias=False, device="cuda").requires_grad_(False)
    states = torch.randn(4, 1024, device="cuda", requires_grad=True)
    wanted = layer(states)
    wanted.sum().backward()
    gradient, states.grad = states.grad, None
    modules: dict[str, nn.Module] = {"head": layer}
    if tied:
        modules["table"] = nn.Embedding(4096, 1024, _weight=layer.weight)
        modules["table"].weight = layer.weight
    model: Any = nn.ModuleDict(modules)
    model.get_output_embeddings = lambda: layer
    before = torch.cuda.memory_allocated()
    assert host_embeddings.move_to_host(model, torch.device("cuda")) is None
    assert before - torch.cuda.memory_allocated() == layer.weight.nbytes
    found: Tensor = layer(states)
    found.sum().backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(states.grad, gradient)
    held = visit_of(model)
    assert held is not None
    assert sum(part.nbytes for part in held.weight()) == layer.weight.nbytes
    del held, found
    assert before - torch.cuda.memory_allocated() >= layer.weight.nbytes - 2**16
    if tied:
        ids = torch.randint(4096, (7,), device="cuda")
        assert torch.equal(modules["table"](ids), layer.weight[ids])
