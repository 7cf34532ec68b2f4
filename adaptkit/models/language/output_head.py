"""The output layer of a language model, taken out of the model's own pass: who has it can compute logits in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from adaptkit.models.efficiency.host_head import HostLinear, Visit, visit_of
from adaptkit.models.language.label_places import LabelPlaces
from adaptkit.models.language.logit_tail import Probe, Tail, unchanged
from adaptkit.models.values import has_no_values


@dataclass(frozen=True)
class OutputHead:
    """What makes logits of hidden states, as the model itself would.

    Attributes:
        layer: The output layer; `nn.Identity` where the states are logits already.
        tail: What the model does to the logits behind it.
        vocabulary: Logits of a row.
        visit: Keeps a layer that waits in the host's memory on the device.
    """

    layer: nn.Module
    tail: Tail
    vocabulary: int
    visit: Visit | None = None

    def __call__(self, states: Tensor) -> Tensor:
        """Returns logits ``(rows, vocabulary)`` for ``(rows, hidden)``, in the dtype in which the model has them."""
        return self.tail(self.layer(states))

    @property
    def trainable(self) -> list[nn.Parameter]:
        """What trains in the layer."""
        return [parameter for parameter in self.layer.parameters() if parameter.requires_grad]

    @property
    def forgets_logits(self) -> bool:
        """Whether nothing but the caller looks at the logits later, so that they may be overwritten."""
        return type(self.layer) in (nn.Linear, HostLinear) and self.tail is unchanged and not self.layer._forward_hooks


def run_with_head(
    model: nn.Module, inputs: Mapping[str, Any], places: LabelPlaces, *, whole: bool = False
) -> tuple[Tensor, OutputHead, Any]:
    """Runs a model, all but its output layer, which is handed out with the hidden states where a label is.

    The layer computes one row in the model's own pass, so that its output can be looked at: what is done to it is
    found out once for each model. A model that does what is not known, or that has no layer for itself, computes
    its own logits, and the states that it returns are those.

    Args:
        model: The adapted model; one with virtual tokens has states for them too, in front.
        inputs: Of its forward.
        places: Where a label is.
        whole: Let the model compute its own logits in any case.

    Returns:
        States ``(labels, size)``, what makes logits of them, and the output of the model.
    """
    layer: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
    visit = visit_of(model)
    if layer is not None and not whole and _tails.get(model, unchanged) is not None:
        apart = _run_apart(model, layer, inputs, places, visit)
        if apart is not None:
            return apart
    return _run_whole(model, layer, inputs, places)


# What each model that has run does behind its output layer; None: something that is not known.
_tails: WeakKeyDictionary[nn.Module, Tail | None] = WeakKeyDictionary()


def _run_apart(
    model: nn.Module, layer: nn.Module, inputs: Mapping[str, Any], places: LabelPlaces, visit: Visit | None
) -> tuple[Tensor, OutputHead, Any] | None:
    """Runs a model with one row of logits; None: it does with logits what is not known, and is to run once more."""
    tap, tail = _Tap(places), _tails.get(model)
    is_first = tail is None
    undo = _random_state(places.index.device) if is_first and not has_no_values(places.index) else None
    with tap.on(layer, probe=is_first):
        output = model(**inputs)
    if tail is None:
        tail = tap.tail(getattr(model, "config", None), output.logits)
    if undo is not None:
        _tails[model] = tail
        if tail is None:
            undo()
    if tail is None or tap.states is None:
        return None
    return tap.states, OutputHead(layer, tail, output.logits.shape[-1], visit), output


def _run_whole(
    model: nn.Module, layer: nn.Module | None, inputs: Mapping[str, Any], places: LabelPlaces
) -> tuple[Tensor, OutputHead, Any]:
    """Runs a model with a row of logits for every label."""
    narrowed = False

    def narrow(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal narrowed
        if not arguments or not places.fit(arguments[0]):
            return None
        narrowed = True
        return (places.pick(arguments[0]).unsqueeze(0), *arguments[1:])

    handle = None if layer is None else layer.register_forward_pre_hook(narrow)
    try:
        output = model(**inputs)
    finally:
        if handle is not None:
            handle.remove()
    logits = output.logits.flatten(0, -2) if narrowed else places.pick(output.logits)
    return logits, OutputHead(nn.Identity(), unchanged, logits.shape[-1]), output


class _Tap:
    """Takes hidden states on their way into an output layer, and lets a single row pass."""

    def __init__(self, places: LabelPlaces) -> None:
        self._places = places
        self._calls = 0
        self._probe: Probe | None = None
        self.states: Tensor | None = None

    @contextmanager
    def on(self, layer: nn.Module, *, probe: bool) -> Iterator[None]:
        """Hangs on a layer within the context.

        Args:
            layer: The output layer.
            probe: Whether the layer is to answer with logits that show what is done to them, instead of its own.
        """
        handles = [layer.register_forward_pre_hook(self._take)]
        if probe:
            handles.append(layer.register_forward_hook(self._answer))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def tail(self, config: Any, logits: Tensor) -> Tail | None:
        """Returns what has made the logits of a model out of the probe; None: it is not known."""
        if self._calls != 1 or self._probe is None:
            return None
        return self._probe.tail(config, logits)

    def _take(self, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not arguments or not self._places.fit(arguments[0]):
            return None
        hidden: Tensor = arguments[0]
        self._calls += 1
        self.states = self._places.pick(hidden)
        return (hidden.detach()[:1, :1], *arguments[1:])

    def _answer(self, _: nn.Module, __: Any, logits: Tensor) -> Tensor:
        self._probe = Probe(logits)
        return self._probe.logits


def _random_state(device: torch.device) -> Callable[[], None]:
    """Returns a function that takes the generators of the host and of a device back to where they are now."""
    module: Any = None if device.type == "cpu" else torch.get_device_module(device)
    host, state = torch.get_rng_state(), None if module is None else module.get_rng_state()

    def undo() -> None:
        torch.set_rng_state(host)
        if module is not None:
            module.set_rng_state(state)

    return undo
