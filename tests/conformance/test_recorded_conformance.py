"""Every strategy keeps the contract: the recorded results are whole, and a sample of the checks is run anew."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adaptkit.registry import load_registry
from adaptkit.testing import STRATEGY_CHECKS, NotApplicable
from adaptkit.testing.check import Check
from adaptkit.testing.subject import Subject, subjects
from benchmarks.cells import STRATEGY_OPTIONS
from benchmarks.conformance import DOCUMENT, RESULTS, report

ROOT = Path(__file__).parents[2]
RECORDED: dict[str, Any] = json.loads((ROOT / RESULTS).read_text(encoding="utf-8"))
CHECKS_OF_EACH = 2


def test_every_strategy_of_ours_was_checked() -> None:
    # In a process of its own: the packages of plugins/ would stay imported in this one.
    program = "import json; from benchmarks.conformance import strategies; print(json.dumps(list(strategies())))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert list(RECORDED["strategies"]) == json.loads(done.stdout)


def test_what_does_not_pass_has_a_reason_and_none_failed() -> None:
    for name, result in RECORDED["strategies"].items():
        assert set(result["states"]) <= {"passed", "expected failure", "not applicable"}, name
        assert all(entry["reason"] for entry in result["reasons"]), name


def test_the_page_is_the_one_of_the_recorded_results() -> None:
    assert report(RECORDED) in (ROOT / DOCUMENT).read_text(encoding="utf-8")


def sample() -> Iterator[Any]:
    """Yields some checks of every strategy that adaptkit brings, each with the reason why it is known to fail."""
    generator = random.Random(0)
    for name, entry in sorted(load_registry().strategies.items()):
        cls = entry.value
        options = cls.Options.model_validate({"name": name, **STRATEGY_OPTIONS.get(name, {})})
        served = [one for one in subjects(cls(options)) if one.base.family in one.capabilities.families]
        for check in generator.sample(STRATEGY_CHECKS, CHECKS_OF_EACH):
            subject = generator.choice(served)
            reason = cls.known_failures.get(check.name) or cls.known_failures.get(
                f"{check.name} on {subject.base_name}"
            )
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            yield pytest.param(check, subject, id=f"{check.name}-{name} on {subject.base_name}", marks=marks)


@pytest.mark.parametrize(("check", "subject"), sample())
def test_a_check_holds(check: Check, subject: Subject) -> None:
    try:
        check(subject)
    except NotApplicable as reason:
        assert str(reason)  # noqa: PT017 - which of the two it is does not matter here
