"""The conformance kit: what every plugin can count on being checked for, and how to check your own.

    from adaptkit.testing import parametrize_with_checks

    @parametrize_with_checks([MyStrategy])
    def test_keeps_the_contract(check):
        check()

`check_strategy` does the same without pytest, ``adaptkit check NAME`` on the command line; `check_task` and
`check_format` are for tasks and formats, which need rows to be tried on.
"""

from adaptkit.testing.check import Check, NotApplicable, Outcome
from adaptkit.testing.format_checks import FORMAT_CHECKS
from adaptkit.testing.fronts import (
    check_format,
    check_strategy,
    check_task,
    parametrize_with_checks,
    parametrize_with_task_checks,
    run_checks,
)
from adaptkit.testing.strategy_checks import STRATEGY_CHECKS
from adaptkit.testing.subject import Subject
from adaptkit.testing.task_checks import TASK_CHECKS

__all__ = [
    "FORMAT_CHECKS",
    "STRATEGY_CHECKS",
    "TASK_CHECKS",
    "Check",
    "NotApplicable",
    "Outcome",
    "Subject",
    "check_format",
    "check_strategy",
    "check_task",
    "parametrize_with_checks",
    "parametrize_with_task_checks",
    "run_checks",
]
