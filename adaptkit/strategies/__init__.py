"""The built-in strategies, registered through the same hook as anyone's."""

from collections.abc import Callable
from typing import Any

from adaptkit.hookspecs import hookimpl
from adaptkit.strategies.full import Full
from adaptkit.strategies.last_layers import LastLayers
from adaptkit.strategies.linear_probe import LinearProbe
from adaptkit.strategies.lora import Lora
from adaptkit.strategies.peft_method import peft_strategies
from adaptkit.strategies.prefix_tuning import PrefixTuning
from adaptkit.strategies.qlora import QLora
from adaptkit.strategy import Strategy


@hookimpl
def adaptkit_register_strategies(register: Callable[[type[Strategy[Any]]], None]) -> None:
    """Registers the six strategies, and one for every method of the installed PEFT."""
    own: tuple[type[Strategy[Any]], ...] = (Full, LastLayers, LinearProbe, Lora, QLora, PrefixTuning)
    for strategy in (*own, *peft_strategies()):
        register(strategy)
