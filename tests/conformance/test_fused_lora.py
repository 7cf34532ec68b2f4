"""The fused LoRA layer computes what PEFT's computes, and steps aside wherever it is not plain."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adaptkit.models.efficiency.fused_lora import FusedLoraLinear, fuse_lora


def adapted(bias: bool = True, **options: Any) -> nn.Module:
    """Returns two linear layers with LoRA whose update is not zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40, bias=bias), nn.GELU(), nn.Linear(40, 16, bias=bias)).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=12, target_modules=["0", "2"], **options), model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def fused(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    fuse_lora(twin)
    return twin


def outputs_and_gradients(model: nn.Module, x: Tensor, *, recompute: bool = False) -> list[Tensor]:
    x = x.clone().requires_grad_(True)
    output = checkpoint(model, x, use_reentrant=False) if recompute else model(x)
    output.square().sum().backward()
    trained = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert x.grad is not None
    return [output.detach(), x.grad, *(gradient for gradient in trained if gradient is not None)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 24)])
@pytest.mark.parametrize("recompute", [True, False])
def test_outputs_and_all_gradients_equal_those_of_peft(bias: bool, shape: tuple[int, ...], recompute: bool) -> None:
    model, x = adapted(bias), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = outputs_and_gradients(model, x)
    found = outputs_and_gradients(fused(model), x, recompute=recompute)
    assert len(found) == len(expected) == 6
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_finite_differences() -> None:
    model = fused(adapted().double())
    assert type(model[0]) is FusedLoraLinear  # type: ignore[index]
    x = torch.randn(3, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    torch.autograd.gradcheck(model, (x,))


@pytest.mark.parametrize("recompute", [True, False])
def test_with_dropout_the_same_numbers_are_dropped(recompute: bool) -> None:
    model, x = adapted(lora_dropout=0.5), torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1))
    twin = fused(model)
    torch.manual_seed(2)
    expected = outputs_and_gradients(model, x)
    torch.manual_seed(2)
    found = outputs_and_gradients(twin, x, recompute=recompute)
    assert len(found) == len(expected) == 6
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_what_is_not_plain_is_left_to_peft_bit_for_bit(options: dict[str, Any]) -> None:
    model, x = adapted(**options), torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    twin = fused(model)
    torch.manual_seed(2)
    expected = model(x)
    torch.manual_seed(2)
    assert torch.equal(twin(x), expected)


def test_under_autocast_it_is_pefts_layer_bit_for_bit() -> None:
    model, x = adapted(), torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fused(model)(x), model(x))


def test_names_tensors_merging_and_switching_off_stay_pefts() -> None:
    model, x = adapted(), torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    twin = fused(model)
    assert twin.state_dict().keys() == model.state_dict().keys()
    expected = twin(x)
    for layer in (twin[0], twin[2]):  # type: ignore[index]
        layer.merge(safe_merge=True)
    torch.testing.assert_close(twin(x), expected, rtol=1e-5, atol=1e-5)
    for layer in (twin[0], twin[2]):  # type: ignore[index]
        layer.unmerge()
        layer.enable_adapters(False)
    torch.testing.assert_close(twin(x), nn.Sequential(model[0].base_layer, model[1], model[2].base_layer)(x))  # type: ignore[index]
