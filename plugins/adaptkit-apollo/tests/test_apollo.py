"""What APOLLO promises: a small state, steps like AdamW's along the raw gradient, and no sudden growth."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adaptkit_apollo import Apollo, ApolloMini
from adaptkit_apollo.optimizer import ApolloAdamW, AuxiliarySpace
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from adaptkit import AdaptContext
from adaptkit.errors import RecipeError

HIDDEN, WIDE, BLOCKS = 64, 256, 2
RATE = 1e-3
VARIANTS = pytest.mark.parametrize("variant", [Apollo, ApolloMini])


def bert() -> Any:
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": BLOCKS, "num_attention_heads": 2, "intermediate_size": WIDE}
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).eval()


def adapted(variant: type[Apollo], model: nn.Module, **options: Any) -> Apollo:
    context = AdaptContext(
        family="encoder",
        task="text-classification",
        peft_task_type="SEQ_CLS",
        head_modules=("classifier",),
        new_parameters=(),
        tokenizer=None,
        total_steps=0,
        seed=0,
        precision="fp32",
    )
    strategy = variant(variant.Options.model_validate({"name": variant.name, **options}))
    strategy.adapt(model, context)
    return strategy


def settings(**changes: Any) -> Any:
    return SimpleNamespace(**{"optimizer": "adamw", "beta2": 0.999, **changes})


def space(**changes: Any) -> AuxiliarySpace:
    fields = {"rank": None, "scaling": "channel", "scale": None, "interval": 200, "growth_limit": None, "seed": 0}
    return AuxiliarySpace(**{**fields, **changes})


def moved(gradients: list[Tensor], **changes: Any) -> list[Tensor]:
    """Returns by what a matrix that begins at zero moves in each step, before the learning rate."""
    matrix = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = ApolloAdamW([{"params": [matrix], "lr": 1.0, "projected": True}], space(**changes), (0.9, 0.999))
    steps = []
    for gradient in gradients:
        before = matrix.detach().clone()
        matrix.grad = gradient.clone()
        optimizer.step()
        steps.append(before - matrix.detach())
    return steps


def noise(rows: int, columns: int, count: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(rows, columns, generator=generator) for _ in range(count)]


def backward(model: nn.Module) -> None:
    model(input_ids=torch.arange(24).view(2, 12), labels=torch.tensor([0, 1])).loss.backward()


def state_size(optimizer: torch.optim.Optimizer) -> int:
    """Returns the numbers in an optimizer's state that grow with the model."""
    return sum(t.numel() for state in optimizer.state.values() for key, t in state.items() if key != "step")


@pytest.mark.parametrize(("variant", "rank"), [(Apollo, HIDDEN // 4), (ApolloMini, 1)])
def test_the_state_is_smaller_than_adamws_by_what_the_formula_says(variant: type[Apollo], rank: int) -> None:
    model = bert()
    strategy = adapted(variant, model)
    ours = strategy.make_optimizer(strategy.parameter_groups(model, RATE), settings())
    adamw = torch.optim.AdamW(model.parameters())
    backward(model)
    ours.step()
    adamw.step()
    inner = [(HIDDEN, HIDDEN)] * 4 * BLOCKS + [(WIDE, HIDDEN)] * 2 * BLOCKS
    saved = sum(2 * larger * smaller - (2 * larger * rank + 1) for larger, smaller in inner)
    assert state_size(ours) == state_size(adamw) - saved


@VARIANTS
def test_the_state_is_numbers_and_tensors_alone(variant: type[Apollo]) -> None:
    model = bert()
    strategy = adapted(variant, model)
    optimizer = strategy.make_optimizer(strategy.parameter_groups(model, RATE), settings())
    backward(model)
    optimizer.step()
    kinds = {type(value) for state in optimizer.state.values() for value in state.values()}
    assert kinds == {int, Tensor}
    assert {type(value) for group in optimizer.param_groups for key, value in group.items() if key != "params"} <= {
        int,
        float,
        bool,
        tuple,
    }


def test_matrices_of_the_blocks_are_projected_and_embeddings_head_and_norms_are_not() -> None:
    model = bert()
    groups = adapted(Apollo, model).parameter_groups(model, RATE)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    (inner,) = (group for group in groups if group.get("projected"))
    assert {names[id(p)] for p in inner["params"]} == {
        name for name, p in model.named_parameters() if "encoder.layer" in name and p.ndim == 2
    }


def test_a_matrix_for_which_the_space_saves_nothing_is_trained_by_adamw() -> None:
    model = bert()
    groups = adapted(Apollo, model, rank=HIDDEN).parameter_groups(model, RATE)
    assert not any(group.get("projected") for group in groups)


def test_where_nothing_is_projected_it_is_adamw() -> None:
    gradients = noise(8, 6, 5)
    ends = []
    for make in (lambda groups: ApolloAdamW(groups, space(), (0.9, 0.999)), torch.optim.AdamW):
        matrix = nn.Parameter(torch.ones(8, 6))
        optimizer = make([{"params": [matrix], "lr": 1e-2, "weight_decay": 0.1}])
        for gradient in gradients:
            matrix.grad = gradient.clone()
            optimizer.step()
        ends.append(matrix.detach())
    assert torch.allclose(ends[0], ends[1], atol=1e-6)


@pytest.mark.parametrize("shape", [(512, 256), (256, 512)])
@pytest.mark.parametrize(("scaling", "rank"), [("channel", None), ("tensor", 1)])
def test_the_first_step_is_as_long_as_adamws(shape: tuple[int, int], scaling: str, rank: int | None) -> None:
    (step,) = moved(noise(*shape), scaling=scaling, rank=rank)
    assert step.norm() == pytest.approx(math.sqrt(step.numel()), rel=0.1)  # AdamW's moves every weight by one


@pytest.mark.parametrize("scale", [1.0, math.sqrt(128)])
def test_a_given_scale_is_a_factor_on_the_step(scale: float) -> None:
    gradients = noise(64, 32)
    (one,), (other,) = moved(gradients, scale=1.0), moved(gradients, scale=scale)
    assert torch.allclose(other, scale * one)


@pytest.mark.parametrize(("shape", "channel"), [((96, 32), 1), ((32, 96), 0)])
def test_a_channel_along_the_larger_side_moves_along_its_own_gradient(shape: tuple[int, int], channel: int) -> None:
    gradients = noise(*shape, count=3)
    for gradient, step in zip(gradients, moved(gradients), strict=True):
        assert torch.allclose(nn.functional.cosine_similarity(gradient, step, dim=channel), torch.ones(96), atol=1e-5)


def test_with_one_factor_the_step_is_a_multiple_of_the_gradient() -> None:
    gradients = noise(96, 32, 3)
    for gradient, step in zip(gradients, moved(gradients, scaling="tensor", rank=1), strict=True):
        factor = step.norm() / gradient.norm()
        assert torch.allclose(step, factor * gradient, atol=1e-5)


def test_no_step_is_longer_than_the_last_by_more_than_the_limit() -> None:
    steady, *noisy = noise(64, 32, 12)
    gradients = [*noisy, *[steady] * 20]  # the moments cancel out at first, and add up later
    free, limited = ([step.norm() for step in moved(gradients, growth_limit=limit)] for limit in (None, 1.01))
    growth = [[later / earlier for earlier, later in pairwise(steps)] for steps in (free, limited)]
    assert max(growth[0]) > 1.05
    assert max(growth[1]) < 1.01 + 1e-4


def test_a_step_without_gradient_stops_nothing() -> None:
    gradients = [torch.zeros(64, 32), *noise(64, 32)]
    nothing, something = moved(gradients, growth_limit=1.01)
    assert not nothing.any()
    assert something.norm() > 1


def test_a_channel_that_has_moments_and_no_gradient_stays_where_it_is() -> None:
    first, second = noise(64, 32, 2)
    second[:10] = 0
    _, step = moved([first, second])
    assert torch.isfinite(step).all()
    assert not step[:10].any()
    assert step[10:].all()


def test_the_projection_keeps_lengths_on_average_and_is_a_function_of_seed_index_and_period() -> None:
    (gradient,) = noise(512, 256)
    chosen = space(interval=10)
    projected = chosen.project(gradient, index=3, step=4)
    assert projected.shape == (512, 64)
    assert projected.norm() == pytest.approx(gradient.norm().item(), rel=0.1)
    torch.manual_seed(99)
    assert torch.equal(projected, chosen.project(gradient, index=3, step=9))
    for other in (
        chosen.project(gradient, 3, 10),
        chosen.project(gradient, 4, 4),
        space(seed=1).project(gradient, 3, 4),
    ):
        assert not torch.equal(projected, other)


def test_an_optimizer_that_the_recipe_names_is_refused_rather_than_overruled() -> None:
    model = bert()
    strategy = adapted(Apollo, model)
    with pytest.raises(RecipeError, match="lion-8bit") as error:
        strategy.make_optimizer(strategy.parameter_groups(model, RATE), settings(optimizer="lion-8bit"))
    assert "training.optimizer" in str(error.value)


def test_the_recipes_weight_decay_is_on_matrices_alone() -> None:
    model = bert()
    strategy = adapted(Apollo, model)
    for group in strategy.parameter_groups(model, RATE):
        recipes = "weight_decay" not in group
        assert {p.ndim >= 2 for p in group["params"]} == {recipes}
        assert recipes or group["weight_decay"] == 0.0
