"""Changes to a recipe from outside: ``training.epochs=1`` on the command line, a mapping in Python."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adaptkit.errors import Problem, RecipeError
from adaptkit.recipe.document import Document, KeyPath, read_yaml
from adaptkit.recipe.stages import STAGES

_SHORT_FORMS = ("model", "task", "strategy")
_OPTIONS_BY_NAME = ("task", "strategy")
STRATEGY = ("strategy", "name")
LEARNING_RATE = ("training", "learning_rate")


@dataclass(frozen=True)
class Override:
    """One change.

    Attributes:
        path: Of the key, inside a stage where it is a stage's.
        value: New value.
        where: What a message calls the place.
        stage: Which stage it changes, as it was written; None: the recipe itself.
    """

    path: tuple[str, ...]
    value: Any
    where: str
    stage: str | None = None

    @property
    def chooses(self) -> bool:
        """Whether it says which strategy or task, and so which options there are."""
        return len(self.path) == 2 and self.path[0] in _OPTIONS_BY_NAME and self.path[1] == "name"


def apply_overrides(document: Document, overrides: Sequence[str] | Mapping[str, Any]) -> Document:
    """Returns the document with keys changed or added; of two changes of one key the last one counts.

    ``stages.0.training.epochs`` is a key of the first stage, after whatever changes the recipe itself.

    Another strategy or task drops the options of the one before, and another strategy the learning rate, which was
    that one's; what is given beside it stays, in any order.

    Args:
        document: Stays as it is.
        overrides: ``key=value`` texts whose values are YAML, or values by dotted key.

    Raises:
        RecipeError: All that are not ``key=value``, or go through a value that is not a section.
    """
    problems: list[Problem] = []
    values, positions = copy.deepcopy(document.values), dict(document.positions)
    read = _read(overrides, problems)
    for stage in dict.fromkeys([None, *(override.stage for override in read)]):
        own = [override for override in read if override.stage == stage]
        try:
            root = _root(values, stage)
        except RecipeError as error:
            problems += [replace(problem, where=override.where) for override in own for problem in error.problems]
            continue
        _apply(_Change(_at(values, root), positions, root), own, problems)
    if problems:
        raise RecipeError(problems)
    return Document(values, positions)


def _apply(changed: _Change, overrides: Sequence[Override], problems: list[Problem]) -> None:
    ordered = sorted(overrides, key=lambda one: (len(one.path), not one.chooses))
    if any(changed.names_another(override) for override in ordered if override.path in (STRATEGY, STRATEGY[:1])):
        changed.drop(LEARNING_RATE)
    for override in ordered:
        try:
            changed.set(override)
        except RecipeError as error:
            problems += error.problems


def _root(values: Mapping[str, Any], stage: str | None) -> KeyPath:
    """Returns the key path of the section that overrides go into.

    Raises:
        RecipeError: There is no such stage.
    """
    if stage is None:
        return ()
    written = values.get(STAGES)
    stages = written if isinstance(written, list) else []
    numbers = [str(number) for number, one in enumerate(stages) if isinstance(one, dict)]
    if stage not in numbers:
        allowed = ", ".join(f"{STAGES}.{number}" for number in numbers) or "no stage: the recipe has none"
        raise RecipeError(f"there is no stage {stage!r} to change", allowed=allowed)
    return (STAGES, int(stage))


def _at(values: Any, path: KeyPath) -> dict[str, Any]:
    for key in path:
        values = values[key]
    section: dict[str, Any] = values
    return section


def _read(overrides: Sequence[str] | Mapping[str, Any], problems: list[Problem]) -> list[Override]:
    if isinstance(overrides, Mapping):
        pairs = [(key, value, f"overrides: {key}") for key, value in overrides.items()]
    else:
        pairs = []
        for text in [overrides] if isinstance(overrides, str) else overrides:
            try:
                pairs.append(_read_text(text))
            except RecipeError as error:
                problems += error.problems
    read = []
    for key, value, where in pairs:
        path = tuple(str(key).split("."))
        if not all(path):
            problems.append(Problem(f"the key {key!r} is not a dotted path", where, "for example training.epochs"))
            continue
        stage = path[1] if path[0] == STAGES and len(path) > 2 else None
        path = path[2:] if stage is not None else path
        is_short = len(path) == 1 and path[0] in _SHORT_FORMS and isinstance(value, str)
        read.append(Override((*path, "name") if is_short else path, value, where, stage))
    return read


def _read_text(text: str) -> tuple[str, Any, str]:
    where = f"command line: {text}"
    key, equals, written = text.partition("=")
    allowed = "key=value, for example training.epochs=1"
    if not equals:
        raise RecipeError(f"{text!r} is not an override", where=where, allowed=allowed)
    try:
        value, positions = read_yaml(written, "")
    except RecipeError as error:
        raise RecipeError([replace(problem, where=where) for problem in error.problems]) from None
    if not positions:
        raise RecipeError(f"{text!r} gives no value", where=where, allowed=allowed, fix=f"{key}=null takes it away")
    return key.strip(), value, where


@dataclass
class _Change:
    values: dict[str, Any]
    positions: dict[KeyPath, str]
    root: KeyPath = ()

    def set(self, override: Override) -> None:
        *sections, last = override.path
        section = self.values
        for end, key in enumerate(sections, start=1):
            section = self._enter(section, override, override.path[:end], key)
        if override.chooses and self.names_another(override):
            section.clear()
            self._forget(override.path[:-1])
        section[last] = override.value
        self._forget(override.path)
        self.positions[*self.root, *override.path] = override.where

    def names_another(self, override: Override) -> bool:
        """Whether a section names something else than an override that chooses."""
        section, chosen = self.values.get(override.path[0]), override.value
        name = section.get("name") if isinstance(section, dict) else section
        return name not in (None, chosen.get("name") if isinstance(chosen, dict) else chosen)

    def drop(self, path: KeyPath) -> None:
        """Takes a key of a section away, if it is there."""
        section = self.values.get(str(path[0]))
        if isinstance(section, dict):
            section.pop(str(path[1]), None)
        self.positions.pop((*self.root, *path), None)

    def _enter(self, section: dict[str, Any], override: Override, path: tuple[str, ...], key: str) -> dict[str, Any]:
        inner = section.get(key)
        if isinstance(inner, str) and path[0] in _SHORT_FORMS and len(path) == 1:
            inner = {"name": inner}
        if inner is None:
            inner = {}
            self.positions.setdefault((*self.root, *path), override.where)
        if not isinstance(inner, dict):
            raise RecipeError(f"{'.'.join(path)} has no keys of its own: it is {inner!r}", where=override.where)
        section[key] = inner
        return inner

    def _forget(self, relative: tuple[str, ...]) -> None:
        path = (*self.root, *relative)
        below = [known for known in self.positions if known[: len(path)] == path and known != path]
        for known in below:
            del self.positions[known]
