"""The checks of strategies, in the order in which they are tried."""

from __future__ import annotations

from adaptkit.testing.check import Check
from adaptkit.testing.strategy_checks import (
    contract,
    exactness,
    precision,
    saving,
    serving,
    structure,
    switching,
    training,
)

MODULES = (contract, structure, training, exactness, precision, saving, switching, serving)
STRATEGY_CHECKS: tuple[Check, ...] = tuple(
    value for module in MODULES for value in vars(module).values() if isinstance(value, Check)
)
