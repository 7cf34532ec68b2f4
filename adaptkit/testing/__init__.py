"""The conformance kit: what every plugin can count on being checked for, and how to check your own.

    from adaptkit.testing import parametrize_with_checks

    @parametrize_with_checks([MyStrategy])
    def test_keeps_the_contract(check):
        check()

`check_strategy` does the same without pytest, ``adaptkit check NAME`` on the command line.
"""

from adaptkit.testing.check import Check, NotApplicable, Outcome
from adaptkit.testing.fronts import check_strategy, parametrize_with_checks, run_checks
from adaptkit.testing.strategy_checks import STRATEGY_CHECKS
from adaptkit.testing.subject import Subject

__all__ = [
    "STRATEGY_CHECKS",
    "Check",
    "NotApplicable",
    "Outcome",
    "Subject",
    "check_strategy",
    "parametrize_with_checks",
    "run_checks",
]
