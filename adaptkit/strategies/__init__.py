"""The built-in strategies, registered through the same hook as anyone's."""

from collections.abc import Callable
from typing import Any

from adaptkit.hookspecs import hookimpl
from adaptkit.strategies.full import Full
from adaptkit.strategies.last_layers import LastLayers
from adaptkit.strategies.linear_probe import LinearProbe
from adaptkit.strategies.lora import Lora
from adaptkit.strategies.prefix_tuning import PrefixTuning
from adaptkit.strategies.qlora import QLora
from adaptkit.strategy import Strategy


@hookimpl
def adaptkit_register_strategies(register: Callable[[type[Strategy[Any]]], None]) -> None:
    """Registers the six strategies."""
    for strategy in (Full, LastLayers, LinearProbe, Lora, QLora, PrefixTuning):
        register(strategy)
