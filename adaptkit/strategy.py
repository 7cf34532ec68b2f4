"""The contract of a strategy: how a pretrained model is adapted.

A strategy is a class that is chosen by name and driven by ordinary method calls; one run, one instance.
Every method but `adapt` has a default that is right for the simplest strategy, so that a whole one reads

    class Bias(Strategy[StrategyOptions]):
        name = "bias"

        def adapt(self, model, context):
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.endswith("bias"))
            return model

and is trained, checkpointed, resumed, saved, reloaded and compared like the built-in ones.

Importing this module imports no torch, so that names and options can be read and checked quickly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

from adaptkit.recipe import Precision, StrategyOptions

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from adaptkit.recipe import TrainingSpec

__all__ = ["AdaptContext", "Capabilities", "FeaturePoint", "Strategy", "StrategyOptions"]

Family: TypeAlias = Literal["encoder", "decoder", "encoder-decoder"]
JSON: TypeAlias = Any
OptionsT = TypeVar("OptionsT", bound=StrategyOptions)


@dataclass(frozen=True)
class Capabilities:
    """What a strategy can do; the framework refuses the rest with a recipe error, before anything is loaded.

    Attributes:
        families: Model families that it adapts.
        tasks: Tasks that it serves; None: all.
        quantized_base: Works on an NF4 or int8 base.
        mergeable: `merge` folds it into the base.
        gradient_checkpointing: Trains with recomputed activations.
        packing: Several rows may share one sequence.
        virtual_tokens: Lengthens the sequence, so logits and labels are aligned from the end.
        changes_base: Trains tensors of the base itself; the base cannot be shared with another run.
        can_disable: `disabled` gives the base's behaviour.
        generates: Works in autoregressive generation with a cache.
        starts_as_base: Behaves as the base does before the first step.
    """

    families: frozenset[Family] = frozenset({"encoder", "decoder", "encoder-decoder"})
    tasks: frozenset[str] | None = None
    quantized_base: bool = True
    mergeable: bool = False
    gradient_checkpointing: bool = True
    packing: bool = True
    virtual_tokens: bool = False
    changes_base: bool = False
    can_disable: bool = False
    generates: bool = True
    starts_as_base: bool = False


@dataclass(frozen=True)
class AdaptContext:
    """What a strategy may know of the run.

    Attributes:
        family: Of the base model.
        task: Name of the task.
        peft_task_type: PEFT's name for the task (``SEQ_CLS`` …), None where it has none.
        head_modules: Names of the modules that were made for the task; not a language model's own output layer.
        new_parameters: Those whose values are not in the base's files; they train unless the strategy opts out.
        tokenizer: The base's tokenizer, or None.
        total_steps: Optimizer steps of the whole run; 0 when a trained model is rebuilt, whose `state` must not
            depend on it.
        seed: Of the run.
        precision: Storage of the base weights.
        bf16: Whether batches go through the model in bf16 arithmetic.
        whole_modules: Names of the modules that train whole, the head and those of other new parameters: an adapter
            would be idle there.
        autocast: ``autocast(model)`` is the context in which a batch goes through a model as in training; `initialize`
            may need it.
    """

    family: Family
    task: str
    peft_task_type: str | None
    head_modules: tuple[str, ...]
    new_parameters: tuple[str, ...]
    tokenizer: Any
    total_steps: int
    seed: int
    precision: Precision
    bf16: bool = False

    @property
    def whole_modules(self) -> tuple[str, ...]:
        """Names of the modules that train whole."""
        others = (name.rpartition(".")[0] for name in self.new_parameters)
        return tuple(dict.fromkeys((*self.head_modules, *others)))

    def autocast(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Returns the context in which a batch goes through a model, as in training."""
        import torch

        device = next(model.parameters()).device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.bf16)


@dataclass(frozen=True)
class FeaturePoint:
    """Where the frozen part of a model ends.

    Attributes:
        module: Name of the first module that trains. Its input, for the same row, is the same in every
            epoch, and the model's logits are its output.
    """

    module: str


class LazyOptions:
    """Options that are made when they are first asked for, because making them takes time.

    ``Options = LazyOptions(make)`` in a strategy; its contract is not examined before.
    """

    def __init__(self, make: Callable[[], type[StrategyOptions]]) -> None:
        self._make = cache(make)

    def __get__(self, instance: object, owner: type) -> type[StrategyOptions]:
        return self._make()


class Strategy(ABC, Generic[OptionsT]):
    """One way to adapt a pretrained model. Subclass it, set ``name`` and write `adapt`.

    Attributes:
        name: What a recipe calls it.
        Options: Its options, a subclass of `StrategyOptions`; the fields are the keys of ``strategy:``.
        capabilities: What it can do.
        trains_new_parameters: Whether the framework makes newly initialised parameters (a fresh head) trainable.
        unavailable: Why it cannot be chosen although its name is known; None: it can.
        known_failures: Conformance checks that it cannot pass, each with the reason: ``check_copy``, or on one of the
            tiny bases only ``check_copy on t5``.
    """

    name: ClassVar[str]
    Options: ClassVar[type[StrategyOptions] | LazyOptions] = StrategyOptions
    capabilities: ClassVar[Capabilities] = Capabilities()
    trains_new_parameters: ClassVar[bool] = True
    unavailable: ClassVar[str | None] = None
    known_failures: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    # -- before the model is loaded ------------------------------------------------------------------

    def base_precision(self) -> Precision | None:
        """Returns the storage of the base that the strategy needs; None: what the recipe says.

        Called before the base is loaded.
        """
        return None

    def learning_rate(self, family: Family) -> float:
        """Returns the peak learning rate of a recipe that names none.

        Called when a recipe is read, as soon as the family of its base is known.
        """
        return 1e-3

    def extra_positions(self) -> int:
        """Returns how many of the base's positions the strategy takes for itself (virtual tokens in the sequence).

        Called before rows are cut to the length of the base.
        """
        return 0

    # -- what trains ---------------------------------------------------------------------------------

    @abstractmethod
    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        """Says what trains: freezes, injects. Structure only; it must also work on the meta device.

        Called whenever a model is built: when a run begins, when it is resumed, when its artifact is loaded. Random
        numbers that are drawn here are a function of the run's seed.

        Args:
            model: The base with the task's head, every parameter frozen.
            context: What may be known of the run.

        Returns:
            The adapted model, of the same call signature; usually the same object. Every parameter with
            ``requires_grad`` trains. The framework adds new parameters and casts all that trains to fp32.
        """

    def initialize(self, model: nn.Module, context: AdaptContext, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Gives the adapter its first values where they depend on real weights or real data.

        Called once, when a run begins: not when it resumes, nor when an artifact is loaded.

        Args:
            model: What `adapt` returned, on its device, in eval mode.
            context: What may be known of the run.
            batches: Training batches, read only as far as needed; ``input_ids`` of shape ``(batch, seq)``.
        """

    # -- the optimizer -------------------------------------------------------------------------------

    def parameter_groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]] | None:
        """Returns optimizer groups in which each trainable parameter stands exactly once.

        Called once in each process that trains, after `adapt` and before `initialize`. The recipe's schedule scales
        the rate of every group alike; a group without ``weight_decay`` has the recipe's. None: one group with weight
        decay and one (biases, norms) without.
        """
        return None

    def make_optimizer(self, groups: list[dict[str, Any]], settings: TrainingSpec) -> Optimizer | None:
        """Returns an optimizer of the strategy's own; None: the one that the recipe names.

        Called once, with the groups, `parameter_groups`' or the framework's. The state of the optimizer is saved with
        every checkpoint: tensors and plain values only.
        """
        return None

    # -- during training -----------------------------------------------------------------------------

    def before_step(self, model: nn.Module, step: int) -> None:
        """Called before the first forward pass of each optimizer step; may narrow what trains in it.

        Args:
            model: The unwrapped adapted model.
            step: Optimizer steps done so far; 0 for the first.
        """

    def extra_loss(self, model: nn.Module) -> Tensor | None:
        """Returns a scalar that is added to the loss once per optimizer step; None: nothing.

        Called after the micro-batches of the step have gone backward.
        """
        return None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after ``optimizer.step()``, while the clipped gradients are still there.

        Args:
            model: The unwrapped adapted model.
            step: As in `before_step`.
        """

    # -- saving and loading --------------------------------------------------------------------------

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns what is saved: all that may ever train and every tensor that `adapt` added.

        Called before the first step, with every checkpoint, and when the artifact is saved; by default also when it is
        loaded, by `load_state`. What is neither trained nor returned must not change.
        The default takes every parameter with ``requires_grad``, under its own name. A strategy that
        narrows what trains, or that adds frozen tensors or buffers, names them itself.
        """
        return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}

    def load_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Copies what `state` gave back into an adapted model, bit for bit.

        Called when a run is resumed, when it goes back to its best step, and when its artifact is loaded. The default
        copies into the tensors that `state` returns, which must therefore be the model's own, not copies.

        Raises:
            CheckpointError: A key is missing, unexpected, or has another shape.
        """
        from adaptkit.models.state import copy_state

        copy_state(self.state(model), state)

    def training_state(self) -> tuple[dict[str, Tensor], dict[str, JSON]]:
        """Returns what only a resumed run needs, as tensors and as JSON: importance scores, schedules.

        Called with every checkpoint.
        """
        return {}, {}

    def load_training_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, JSON]) -> None:
        """Takes back what `training_state` gave; the tensors are on the CPU.

        Called when a run is resumed, after `load_state`.
        """

    def adapter_files(self, model: nn.Module) -> dict[str, JSON]:
        """Returns JSON files, by name, by which other libraries read the saved tensors (``adapter_config.json``).

        Called when the artifact is saved.
        """
        return {}

    # -- what else can be done with an adapted model -------------------------------------------------

    def frozen_features(self, model: nn.Module) -> FeaturePoint | None:
        """Returns where the frozen part ends, so that its output can be cached; None: it cannot.

        Called once in each process that trains, before `initialize`.
        """
        return None

    def disabled(self, model: nn.Module) -> AbstractContextManager[None]:
        """Returns a context in which the model behaves as the base does (capability ``can_disable``).

        Called where the base's own answer is wanted beside the adapted one; never by the training loop.
        """
        raise NotImplementedError(f"{self.name} cannot be switched off")

    def merge(self, model: nn.Module) -> nn.Module:
        """Folds the adapter into the base and returns a plain model (capability ``mergeable``).

        Called when a finished run becomes the base of another.
        """
        raise NotImplementedError(f"{self.name} cannot be merged")
