"""The checks of dataset formats, in the order in which they are tried."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.contracts import contract_faults
from adaptkit.data.recognition import AUTO, layouts_of, read_as
from adaptkit.errors import DataError
from adaptkit.format import Format
from adaptkit.recipe import DataSpec
from adaptkit.registry import Registry, load_registry
from adaptkit.task import Row, Splits, Task
from adaptkit.testing.check import Check, check
from adaptkit.testing.options import assert_imports_no_torch

ANYTHING: tuple[Any, ...] = (None, 3, 2.5, True, "", [], {}, [None], [3], {"a": 1}, [{"a": None}])


@dataclass(frozen=True)
class FormatSubject:
    """A format and labelled rows in it.

    Attributes:
        format: The class.
        rows: Labelled rows, by the columns of the format.
    """

    format: type[Format]
    rows: Sequence[Mapping[str, Any]]
    base_name: str = ""

    @property
    def name(self) -> str:
        """The name of the format."""
        return self.format.name

    @property
    def known_failures(self) -> Mapping[str, str]:
        """A format declares none."""
        return {}

    def formats(self, registry: Registry) -> dict[str, type[Format]]:
        """Returns all formats that are installed, and this one."""
        return {**registry.format_classes(), self.format.name: self.format}

    def tasks(self, registry: Registry) -> list[Task[Any]]:
        """Returns the tasks to which the format is offered."""
        made = [registry.make_task(entry.value.Options(name=name)) for name, entry in registry.tasks.items()]
        return [t for t in made if self.name in layouts_of(t, self.formats(registry), labelled=True)]


@check(once=True)
def check_format_contract(subject: FormatSubject) -> None:
    """Name, docstring and roles are as the contract wants them."""
    faults = contract_faults("format", subject.format.name, subject.format)
    assert not faults, "; ".join(faults)
    assert (subject.format.__doc__ or "").strip(), "the class has no docstring; its first line is what is listed"
    assert subject.rows, "no rows are given"


@check(once=True)
def check_format_import(subject: FormatSubject) -> None:
    """The module of the format imports no torch."""
    assert_imports_no_torch(subject.format.__module__)


@check(once=True)
def check_offered(subject: FormatSubject) -> None:
    """Some task reads what the format gives."""
    assert subject.tasks(load_registry()), f"no task reads the columns {', '.join(subject.format.gives)}"


@check(once=True)
def check_recognised(subject: FormatSubject) -> None:
    """Rows are recognised by their columns alone, beside all the formats that are installed."""
    registry = load_registry()
    rows = [Row(values, f"row {number}") for number, values in enumerate(subject.rows, 1)]
    for task in subject.tasks(registry):
        _, found = read_as(rows, AUTO, {}, layouts_of(task, subject.formats(registry), labelled=True))
        assert found == subject.name, f"for {task.name} the rows are taken for {found!r}"


@check(once=True)
def check_conversion(subject: FormatSubject) -> None:
    """A labelled row gives all that the format says it gives; one without labels the rest; neither is changed."""
    for values in subject.rows:
        kept = copy.deepcopy(dict(values))
        made = subject.format().convert(values)
        lost = sorted(set(subject.format.gives) - made.keys())
        assert not lost, f"a labelled row gives no {', '.join(lost)}"
        asked = {role: value for role, value in values.items() if role not in subject.format.label_roles}
        assert subject.format().convert(asked), "a row without labels gives nothing"
        assert dict(values) == kept, "convert() has changed the row that it was given"


@check(once=True)
def check_converted_rows(subject: FormatSubject) -> None:
    """The tasks that read what it gives accept its rows."""
    data = DataSpec.model_validate({"train": "rows.jsonl"})
    for task in subject.tasks(load_registry()):
        rows = [Row(subject.format().convert(values), f"row {i}") for i, values in enumerate(subject.rows, 1)]
        task.prepare(Splits(rows), data)


@check(once=True)
def check_hostile_values(subject: FormatSubject) -> None:
    """Whatever stands in a column, the answer is a row or a DataError."""
    for role in (*subject.format.roles, *subject.format.label_roles):
        for value in ANYTHING:
            try:
                subject.format().convert({**subject.rows[0], role: value})
            except DataError:
                continue
            except Exception as error:
                found = f"{role}: {value!r} ends in {type(error).__name__}: {error}"
                raise AssertionError(f"{found}; raise a DataError that says what was found") from error


FORMAT_CHECKS: tuple[Check, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Check))
