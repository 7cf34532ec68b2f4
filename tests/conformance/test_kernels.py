"""A module gets a fused forward only where it gives what its own forward gives. The kernels are plain PyTorch here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.llama import modeling_llama

from adaptkit.models.efficiency.kernels import ROTARY, Kernels, fuse

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
}


class Counted:
    """Kernels that count their calls."""

    def __init__(self) -> None:
        self.calls = {"norm": 0, "gate": 0, "rotate": 0}

    def kernels(self) -> Kernels:
        return Kernels(self.norm, self.gate, self.rotate)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        self.calls["norm"] += 1
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)

    def gate(self, a: Tensor, b: Tensor) -> Tensor:
        self.calls["gate"] += 1
        return nn.functional.silu(a) * b

    def rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        self.calls["rotate"] += 1
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        half = modeling_llama.rotate_half
        return q * cos + half(q) * sin, k * cos + half(k) * sin


@pytest.fixture
def _own_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the modelling files their own function back after a test."""
    for source in (modeling_llama, modeling_gemma2):
        monkeypatch.setattr(source, ROTARY, getattr(source, ROTARY))


def small(model_type: str, **values: Any) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES, **values)
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    ids = torch.randint(0, 100, (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        result: Tensor = model(input_ids=ids).logits
    return result


@pytest.mark.usefixtures("_own_rotation")
def test_norms_gates_and_rotations_of_llama_are_fused_and_nothing_changes() -> None:
    model, counted = small("llama"), Counted()
    expected = logits(model)
    names = model.state_dict().keys()
    assert fuse(model, counted.kernels()) == 2 * 2 + 1 + 2  # two norms a layer, one at the end, two gates
    before = dict(counted.calls)
    found = logits(model)
    assert {name: counted.calls[name] - before[name] for name in before} == {"norm": 5, "gate": 2, "rotate": 2}
    assert torch.equal(found, expected)
    assert model.state_dict().keys() == names


@pytest.mark.usefixtures("_own_rotation")
def test_what_looks_alike_and_computes_something_else_is_left_alone() -> None:
    # Gemma's norm multiplies by 1 + weight, and its gate is a GELU.
    model, counted = small("gemma2"), Counted()
    expected = logits(model)
    assert fuse(model, counted.kernels()) == 0
    assert torch.equal(logits(model), expected)


@pytest.mark.usefixtures("_own_rotation")
def test_a_norm_with_another_eps_is_not_mistaken() -> None:
    model, counted = small("llama"), Counted()
    wrong = Kernels(lambda x, weight, eps: counted.norm(x, weight, 100 * eps), counted.gate, counted.rotate)
    assert fuse(model, wrong) == 2


@pytest.mark.usefixtures("_own_rotation")
def test_other_calls_of_the_rotation_go_to_its_own_function() -> None:
    model, counted = small("llama"), Counted()
    fuse(model, counted.kernels())
    before = counted.calls["rotate"]
    q, k, cos, sin = torch.randn(1, 4, 3, 16), torch.randn(1, 2, 3, 16), torch.randn(1, 3, 16), torch.randn(1, 3, 16)
    modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)  # fp32
    assert counted.calls["rotate"] == before


@pytest.mark.usefixtures("_own_rotation")
def test_norms_in_fp32_and_training_modes_stay_as_they_are() -> None:
    model, counted = small("llama").float().train(), Counted()
    fuse(model, counted.kernels())
    assert counted.calls["norm"] == 0
    assert all(module.training for module in model.modules())
