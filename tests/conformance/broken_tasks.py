"""Tasks and formats that are broken on purpose, each in one way, for the checks that must notice."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor

from adaptkit import Format, LossSum, Metrics, TaskOptions
from adaptkit.errors import DataError
from adaptkit.registry import load_registry
from adaptkit.task import TaskCapabilities

Classification: Any = load_registry().task("text-classification")
CausalLM: Any = load_registry().task("causal-lm")


class ShoutingTask(Classification):
    """Its name is no name."""

    name = "Shouting!"


class LooseTaskOptions(TaskOptions):
    """Takes any key."""

    model_config = ConfigDict(extra="allow")


class LooseTask(Classification):
    """Takes any option."""

    Options = LooseTaskOptions


class Careless(Classification):
    """Accepts every row."""

    def prepare(self, splits: Any, data: Any) -> None:
        with contextlib.suppress(DataError):
            super().prepare(splits, data)


class Trusting(Classification):
    """Takes for granted that a text is a text."""

    def prepare(self, splits: Any, data: Any) -> None:
        for row in splits.train:
            row.values["text"].lower()
        super().prepare(splits, data)


class Forgetful(Classification):
    """Loads its labels in another order."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state({**state, "labels": state["labels"][::-1]})


class TensorFeatures(Classification):
    """Gives tensors where lists are wanted."""

    def features(self, *arguments: Any, **rest: Any) -> Any:
        return [{**f, "input_ids": torch.tensor(f["input_ids"])} for f in super().features(*arguments, **rest)]


class PadsInFront(Classification):
    """Pads on the left."""

    def collate(self, features: Sequence[Any], tokenizer: Any) -> Any:
        batch = super().collate(features, tokenizer)
        order = batch["attention_mask"].argsort(dim=1, stable=True)
        return {**batch, **{key: batch[key].gather(1, order) for key in ("input_ids", "attention_mask")}}


class MeanLoss(Classification):
    """Divides by itself."""

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> LossSum:
        return LossSum(super().loss(model, batch).total / len(batch["input_ids"]))


class DetachedLoss(Classification):
    """Its loss has no gradient."""

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> LossSum:
        return LossSum(super().loss(model, batch).total.detach().requires_grad_())


class Restless(Classification):
    """Draws from Python's own generator."""

    def vary(self, feature: Any, generator: random.Random) -> Any:
        return {**feature, "input_ids": random.sample(feature["input_ids"], len(feature["input_ids"]))}


class MeanOfMeans(Metrics):
    """Averages over batches, whatever their size."""

    def __init__(self, inner: Any) -> None:
        self.make, self.losses, self.rest = inner, [], {}

    def update(self, model: Any, batch: Mapping[str, Tensor]) -> None:
        one = self.make()
        one.update(model, batch)
        self.rest = one.compute()
        self.losses.append(self.rest["loss"])

    def compute(self) -> dict[str, float]:
        return {**self.rest, "loss": sum(self.losses) / len(self.losses)}


class Uneven(Classification):
    """Its figures depend on how rows are cut into batches."""

    def metrics(self) -> Metrics:
        return MeanOfMeans(super().metrics)


class SkipsTheLast(Classification):
    """Forgets a prediction."""

    def predict(self, model: Any, batch: Mapping[str, Tensor]) -> Any:
        return super().predict(model, batch)[:-1]


class RandomHead(Classification):
    """Draws its head from torch's global random state."""

    def load_base(self, source: Any, numerics: Any, seed: int) -> Any:
        base = super().load_base(source, numerics, seed)
        torch.nn.init.normal_(base.module.get_parameter(base.new_parameters[0]))
        return base


class CrowdedFeatures(CausalLM):
    """Has more in its features than can be packed."""

    capabilities = TaskCapabilities(families=frozenset({"decoder"}), packing=True)

    def features(self, *arguments: Any, **rest: Any) -> Any:
        return [{**feature, "weight": 1.0} for feature in super().features(*arguments, **rest)]

    def collate(self, features: Sequence[Any], tokenizer: Any) -> Any:
        return super().collate([{k: v for k, v in f.items() if k != "weight"} for f in features], tokenizer)


class Backwards(Classification):
    """Follows the gradient upwards."""

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> LossSum:
        return LossSum(-super().loss(model, batch).total)

    def metrics(self) -> Metrics:
        return super().metrics()


# -- formats -------------------------------------------------------------------------------------------


class Headlines(Format):
    """Keeps the contract: a headline and a topic."""

    name = "headlines"
    gives = ("text", "label")
    roles = ("headline",)
    label_roles = ("topic",)

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        names = {"headline": "text", "topic": "label"}
        return {names[role]: value for role, value in values.items()}


class ShoutingFormat(Headlines):
    """Its name is no name."""

    name = "Shouting!"


class UnwantedFormat(Headlines):
    """Gives what nobody reads."""

    gives = ("headline", "topic")

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return dict(values)


class Ambiguous(Headlines):
    """Has the columns of the task itself."""

    roles, label_roles = ("text",), ("label",)

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return dict(values)


class Greedy(Headlines):
    """Changes the row that it is given."""

    def convert(self, values: Any) -> dict[str, Any]:
        made = super().convert(values)
        values["headline"] = ""
        return made


class Emptying(Headlines):
    """Gives rows that no task accepts."""

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().convert(values), "text": ""}


class TrustingFormat(Headlines):
    """Takes for granted that a headline is a text."""

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return super().convert({**values, "headline": values["headline"].strip()})
