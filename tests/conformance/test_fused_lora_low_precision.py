"""The fused LoRA layer under autocast and on 4-bit weights: PEFT's results, and one product fewer when recomputed."""

from __future__ import annotations

import copy

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adaptkit.models.efficiency import fused_lora
from adaptkit.models.efficiency.fused_lora import FusedLora, fuse_lora

IN, OUT = 128, 192


def adapted(kind: str, dtype: torch.dtype) -> nn.Module:
    """Returns two layers with LoRA whose update is not zero; what trains is fp32."""
    torch.manual_seed(0)
    made: list[nn.Module] = []
    for rows, columns in ((OUT, IN), (IN, OUT)):
        plain = nn.Linear(columns, rows, dtype=dtype)
        made.append(plain if kind == "linear" else in_four_bits(plain, dtype))
    model = nn.Sequential(made[0], nn.GELU(), made[1]).requires_grad_(False)
    model.is_loaded_in_4bit = kind == "four bits"  # type: ignore[assignment]  # what PEFT asks
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=12, target_modules=["0", "2"]), model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def in_four_bits(plain: nn.Linear, dtype: torch.dtype) -> nn.Module:
    layer = bitsandbytes.nn.Linear4bit(
        plain.in_features, plain.out_features, compute_dtype=dtype, quant_type="nf4", compress_statistics=True
    )
    layer.weight = bitsandbytes.nn.Params4bit(
        plain.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    layer.bias = nn.Parameter(plain.bias.data.clone(), requires_grad=False)
    packed: nn.Module = layer.to("cpu")
    return packed


def results(model: nn.Module, x: Tensor, *, recompute: bool, bf16: bool) -> list[Tensor]:
    x = x.clone().requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        output = checkpoint(model, x, use_reentrant=False) if recompute else model(x)
    output.float().square().sum().backward()
    trained = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert x.grad is not None
    return [output.detach(), x.grad, *(gradient for gradient in trained if gradient is not None)]


@pytest.mark.parametrize("kind", ["linear", "four bits"])
@pytest.mark.parametrize(("bf16", "of_input"), [(True, torch.bfloat16), (True, torch.float32), (False, torch.float32)])
@pytest.mark.parametrize("recompute", [True, False])
def test_outputs_and_gradients_are_those_of_peft(kind: str, bf16: bool, of_input: torch.dtype, recompute: bool) -> None:
    model = adapted(kind, torch.bfloat16 if bf16 else torch.float32)
    twin = copy.deepcopy(model)
    fuse_lora(twin)
    x = torch.randn(3, 5, IN, generator=torch.Generator().manual_seed(1)).to(of_input)
    expected = results(model, x, recompute=False, bf16=bf16)
    found = results(twin, x, recompute=recompute, bf16=bf16)
    assert isinstance(twin[0], FusedLora)  # type: ignore[index]
    assert len(found) == len(expected) == 6
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        difference = (one.double() - other.double()).norm() / other.double().norm()
        assert difference <= (1.5e-2 if bf16 else 1e-5), float(difference)


def test_without_gradients_four_bits_are_left_to_bitsandbytes_bit_for_bit() -> None:
    model = adapted("four bits", torch.float32)
    twin = copy.deepcopy(model)
    fuse_lora(twin)
    x = torch.randn(5, IN, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))


def test_the_last_product_of_a_recomputed_block_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("four bits", torch.float32)
    fuse_lora(model)
    shapes: list[tuple[int, ...]] = []
    whole = fused_lora._matrix

    def counted(base: nn.Module, dtype: torch.dtype) -> Tensor:
        matrix = whole(base, dtype)
        shapes.append(tuple(matrix.shape))
        return matrix

    monkeypatch.setattr(fused_lora, "_matrix", counted)
    results(model, torch.randn(5, IN), recompute=True, bf16=False)
    # Forward, recomputation and backward of the first layer; forward and backward of the last.
    assert shapes.count((OUT, IN)) == 3
    assert shapes.count((IN, OUT)) == 2
