"""What saves memory changes no gradient, and does save it."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from adaptkit.models.efficiency import host_activations, host_embeddings
from adaptkit.models.efficiency.host_activations import Buffers, HostActivations
from adaptkit.models.efficiency.recomputation import draws_at_random
from adaptkit.registry import load_registry
from adaptkit.testing.subject import Subject
from adaptkit.testing.trial import ALL_TOKENS, Trial, make_trial

OPTIONS: Mapping[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "qlora": {"r": 4, "lora_dropout": 0.0},
    "full": {},
    "prefix-tuning": {"num_virtual_tokens": 4},
    "last-layers": {"num_layers": 1},
}
DROPOUT: Mapping[str, dict[str, float]] = {
    "bert": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2},
    "gpt2": {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2},
    "llama": {"attention_dropout": 0.2},
    "t5": {"dropout_rate": 0.2},
}
BOTH = ("whole", "selective")
TOLERANCE = 2e-6
IN_BF16 = 2e-2


def trial(strategy: str, base: str, config: dict[str, float] | None = None, **training: Any) -> Trial:
    registry = load_registry()
    subject = Subject(registry.strategy(strategy), OPTIONS[strategy], base)
    recipe = subject.recipe(**training)
    model = recipe.model.model_copy(update={"config": config or {}})
    return make_trial(recipe.model_copy(update={"model": model}), subject.make(), registry).move_away()


def gradient(made: Trial) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return made.gradient(made.batches(ALL_TOKENS))


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert float((found - wanted).norm() / wanted.norm()) <= TOLERANCE


def recomputed(kind: str) -> Any:
    return True if kind == "whole" else kind


class Operators(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def attention(self) -> int:
        return sum(n for name, n in self.counts.items() if "attention" in name and "backward" not in name)


@pytest.mark.parametrize("base", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("strategy", ["lora", "qlora", "full", "prefix-tuning"])
def test_recomputed_activations_give_the_same_gradient(
    strategy: str, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_activations, "MIN_BYTES", 0)
    wanted = gradient(trial(strategy, base))
    for kind in BOTH:
        assert_same(gradient(trial(strategy, base, gradient_checkpointing=recomputed(kind))), wanted)
    assert_same(gradient(trial(strategy, base, gradient_checkpointing=True, offload=["activations"])), wanted)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("base", ["bert", "gpt2", "llama", "t5"])
def test_what_is_dropped_is_dropped_again(base: str, kind: str) -> None:
    made = trial("lora", base, DROPOUT[base])
    wanted = gradient(made)
    assert draws_at_random(made.model)
    with torch.random.fork_rng():  # other random numbers give another gradient
        torch.manual_seed(1)
        assert float((made.gradient(made.batches(ALL_TOKENS)) - wanted).norm() / wanted.norm()) > 1e-2
    assert_same(gradient(trial("lora", base, DROPOUT[base], gradient_checkpointing=recomputed(kind))), wanted)


def test_dropout_of_an_adapter_is_dropped_again() -> None:
    registry = load_registry()
    subject = Subject(registry.strategy("lora"), {"r": 4, "lora_dropout": 0.3}, "llama")
    wanted = gradient(subject.trial().move_away())
    assert_same(gradient(subject.trial(gradient_checkpointing=True).move_away()), wanted)


@pytest.mark.parametrize("base", ["bert", "llama", "t5"])
def test_random_numbers_are_kept_only_where_some_are_drawn(base: str) -> None:
    assert not draws_at_random(trial("prefix-tuning", base).model)
    assert draws_at_random(trial("prefix-tuning", base, DROPOUT[base]).model)


def test_of_a_module_from_elsewhere_nothing_is_known() -> None:
    class Elsewhere(torch.nn.Module):
        pass

    assert draws_at_random(Elsewhere())
    assert not draws_at_random(torch.nn.Sequential(torch.nn.Dropout(0.0), torch.nn.Linear(2, 2)))
    assert draws_at_random(torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(2, 2)))


def test_a_method_that_draws_without_dropout_draws_again_alike() -> None:
    registry = load_registry()
    subject = Subject(registry.strategy("peft:pvera"), {}, "llama")
    made = subject.trial().move_away()
    wanted = gradient(made)
    assert draws_at_random(made.model)
    assert_same(gradient(subject.trial(gradient_checkpointing=True).move_away()), wanted)


def saved_bytes(made: Trial) -> int:
    """Returns the memory that autograd holds on to after a forward pass, without that of parameters."""
    held: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in made.model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = made.task.loss(made.model, made.batches(ALL_TOKENS)[0]).total
    del loss
    return sum(held.values())


@pytest.mark.parametrize("base", ["bert", "gpt2", "llama", "t5"])
def test_a_block_keeps_its_input_alone(base: str) -> None:
    assert saved_bytes(trial("lora", base, gradient_checkpointing=True)) < 0.45 * saved_bytes(trial("lora", base))


def operators(made: Trial) -> tuple[Operators, Operators]:
    """Returns what a forward and a backward pass ran."""
    with Operators() as forward:
        loss = made.task.loss(made.model, made.batches(ALL_TOKENS)[0]).total
    with Operators() as backward:
        loss.backward()
    return forward, backward


@pytest.mark.parametrize("base", ["bert", "gpt2", "llama", "t5"])
def test_the_output_of_attention_is_kept_where_only_the_rest_is_recomputed(base: str) -> None:
    forward, backward = operators(trial("lora", base))
    assert forward.attention > 0
    assert backward.attention == 0
    forward, backward = operators(trial("lora", base, gradient_checkpointing=True))
    assert backward.attention == forward.attention
    products = backward.counts["mm"] + backward.counts["addmm"]
    _, backward = operators(trial("lora", base, gradient_checkpointing="selective"))
    assert backward.attention == 0
    assert backward.counts["mm"] + backward.counts["addmm"] == products


def test_frozen_blocks_below_the_first_that_trains_are_not_recomputed() -> None:
    forward, backward = operators(trial("last-layers", "bert", gradient_checkpointing=True))
    assert (forward.attention, backward.attention) == (2, 1)


def test_inputs_of_blocks_leave_and_nothing_else_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_activations, "MIN_BYTES", 0)
    left: list[weakref.ref[Tensor]] = []
    leave = HostActivations._leave

    def watched(self: HostActivations, tensor: Tensor) -> Any:
        left.append(weakref.ref(tensor))
        return leave(self, tensor)

    monkeypatch.setattr(HostActivations, "_leave", watched)
    made = trial("lora", "llama", gradient_checkpointing=True, offload=["activations"])
    loss = made.task.loss(made.model, made.batches(ALL_TOKENS)[0]).total
    assert len(left) == 2
    assert [reference() for reference in left] == [None, None]
    loss.backward()
    made.evaluate()
    assert len(left) == 2


def test_batches_of_all_shapes_share_the_memory_in_which_they_wait() -> None:
    buffers, taken = Buffers(), set()
    for length in range(600, 1000):
        waiting = [buffers.take(torch.empty(length, 8, dtype=torch.bfloat16)) for _ in range(3)]
        for number, host in enumerate(waiting):
            assert (host.shape, host.dtype, host.is_contiguous()) == ((length, 8), torch.bfloat16, True)
            host.fill_(number)
        assert [float(host.float().sum()) for host in waiting] == [0, length * 8, length * 16]
        taken |= {(host.data_ptr(), host.untyped_storage().nbytes()) for host in waiting}
        for host in waiting:
            buffers.take_back(host)
    assert sum(size for _, size in taken) <= 3 * 2 * 1000 * 8 * 2


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_what_finds_no_room_in_the_host_says_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: HostActivations, tensor: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("the host is full")

    monkeypatch.setattr(HostActivations, "to_host", full)
    states = torch.ones(2**19, requires_grad=True) * 2
    with pytest.raises(torch.OutOfMemoryError, match="the host is full"), HostActivations(states.device).saving(states):
        states.square()


def test_small_activations_stay() -> None:
    states = torch.ones(4, requires_grad=True) * 2
    with HostActivations(states.device).saving(states):
        product = states.square()
    assert product.grad_fn._saved_self is not None  # type: ignore[union-attr]
    assert isinstance(product.grad_fn._raw_saved_self.data, Tensor)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("strategy", "base", "tables"),
    [
        ("lora", "llama", ["model.embed_tokens.weight", "lm_head.weight"]),
        ("lora", "bert", ["bert.embeddings.word_embeddings.weight"]),
        ("lora", "gpt2", ["transformer.wte.weight"]),
        ("lora", "t5", ["shared.weight"]),
        ("full", "llama", []),
    ],
)
def test_frozen_embeddings_of_input_and_output_wait_in_the_host(
    strategy: str, base: str, tables: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_embeddings, "MIN_BYTES", 2**16)
    made = trial(strategy, base, {} if base != "llama" else {"tie_word_embeddings": False}, offload=["embeddings"])
    found = list(host_embeddings.frozen_tables(made.model))
    assert [name for name in found if "position" not in name and "wpe" not in name] == tables
    assert len(made.adapted.notes) == (0 if found else 1)


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", ["lora", "qlora"])
def test_on_a_gpu_tables_in_the_host_hold_the_same_bits(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_embeddings, "MIN_BYTES", 2**16)
    made, moved = trial(strategy, "llama"), trial(strategy, "llama", offload=["embeddings"])
    table = moved.model.get_parameter("model.embed_tokens.weight")
    assert table.device.type == "cuda"
    assert torch.equal(table, made.model.get_parameter("model.embed_tokens.weight"))
    wanted, found = gradient(made), gradient(moved)
    assert float((found - wanted).norm() / wanted.norm()) <= IN_BF16  # products by parts of an output layer
    assert moved.evaluate() == pytest.approx(made.evaluate(), rel=IN_BF16)


@pytest.mark.gpu
def test_on_a_gpu_a_table_in_the_host_takes_none_of_its_memory() -> None:
    embedding = torch.nn.Embedding(2**16, 512).requires_grad_(False).to("cuda")
    ids = torch.randint(2**16, (4, 128), device="cuda")
    wanted, before = embedding(ids), torch.cuda.memory_allocated()
    assert host_embeddings.move_to_host(embedding, torch.device("cuda")) is None
    assert before - torch.cuda.memory_allocated() == 2**16 * 512 * 4
    embedding.to("cuda")  # as accelerate does
    assert before - torch.cuda.memory_allocated() == 2**16 * 512 * 4
    assert torch.equal(embedding(ids), wanted)
    assert torch.equal(embedding.weight.cpu()[ids.cpu()], wanted.cpu())


@pytest.mark.gpu
def test_on_a_gpu_inputs_of_blocks_take_no_memory_between_the_passes() -> None:
    layers, shape = 24, (4, 1024, 1024)
    found: dict[bool, tuple[Tensor, int]] = {}
    for offload in (False, True):
        from adaptkit.models.efficiency.recomputation import BlockRunner

        torch.manual_seed(0)
        blocks = [torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.Tanh()).cuda() for _ in range(layers)]
        run = BlockRunner("whole", HostActivations(torch.device("cuda")) if offload else None, draws=False)
        for _ in range(3):
            torch.cuda.reset_peak_memory_stats()
            states = torch.ones(shape, device="cuda") / 8
            for block in blocks:
                states = run(block, states)
            states.square().sum().backward()
            del states
        gradients = torch.cat([p.grad.flatten() for block in blocks for p in block.parameters() if p.grad is not None])
        found[offload] = gradients, torch.cuda.max_memory_allocated()
        del blocks, run, gradients
    assert torch.equal(found[True][0], found[False][0])
    assert found[False][1] - found[True][1] > 0.5 * layers * 4 * 1024 * 1024 * 4
