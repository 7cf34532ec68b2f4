"""The documentation says what is there, and everything that people are to read is documented."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import pkgutil
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import doc_text
import pytest
import typer.main
import yaml
from doc_text import PAGES, ROOT, title

import adaptkit
from adaptkit.cli.app import app
from adaptkit.hookspecs import Events, Registration, RunInfo, StepRecord, Tracker
from adaptkit.recipe import parse_recipe
from adaptkit.registry import Registry, load_registry
from adaptkit.strategy import AdaptContext, Capabilities, FeaturePoint, Strategy
from adaptkit.task import Metrics, Task, TaskCapabilities

CONTRACTS = (Strategy, Task, Metrics, Registration, Events, Tracker)
RECORDS = (AdaptContext, Capabilities, FeaturePoint, TaskCapabilities, RunInfo, StepRecord)
LISTED = {"contract.md": (Strategy, Task), "hooks.md": (Registration, Events, Tracker)}
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))

every_page = pytest.mark.parametrize("page", PAGES, ids=title)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/generate.py, imported."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def methods(contract: type) -> list[str]:
    return [name for name, member in vars(contract).items() if inspect.isfunction(member) and not name.startswith("_")]


@pytest.mark.parametrize(
    ("contract", "method"), [(contract, name) for contract in CONTRACTS for name in methods(contract)]
)
def test_every_method_and_hook_of_a_contract_is_documented(contract: type, method: str) -> None:
    assert inspect.getdoc(vars(contract)[method])


@pytest.mark.parametrize("method", methods(Strategy))
def test_every_method_of_a_strategy_says_when_it_is_called(method: str) -> None:
    assert re.search(r"\bCalled\b", inspect.getdoc(vars(Strategy)[method]) or "")


@pytest.mark.parametrize(
    ("page", "method"),
    [(page, name) for page, contracts in LISTED.items() for contract in contracts for name in methods(contract)],
)
def test_every_method_and_hook_is_on_its_page(page: str, method: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert f"\n### {method}\n" in text or f"\n| `{method}` |" in text


@pytest.mark.parametrize(
    ("page", "record"),
    [("contract.md", Capabilities), ("contract.md", AdaptContext), ("hooks.md", RunInfo), ("hooks.md", StepRecord)],
)
def test_every_field_is_on_its_page(page: str, record: type) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert not [field for field in inspect.get_annotations(record) if f"\n| `{field}` |" not in text]


def test_a_page_says_what_a_method_does_by_default() -> None:
    sections = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8").split("\n### ")
    ends = {section.partition("\n")[0]: section for section in sections}
    assert "No default: it must be written." in ends["adapt"]
    assert "By default it does nothing." in ends["before_step"]
    assert "By default it refuses." in ends["merge"]
    rate = Strategy.learning_rate(None, "encoder")  # type: ignore[arg-type]
    assert f"By default it returns `{rate}`." in ends["learning_rate"]


@pytest.mark.parametrize("record", RECORDS)
def test_every_field_of_a_contract_is_explained(record: type) -> None:
    explained = re.findall(r"^ *(\w+):", inspect.getdoc(record) or "", re.MULTILINE)
    assert set(inspect.get_annotations(record)) <= set(explained)


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = [
        f"{target}#{anchor}"
        for target, anchor in doc_text.links(page)
        if not target.exists() or (anchor and anchor not in doc_text.anchors(target))
    ]
    assert not broken


@every_page
def test_every_command_that_is_shown_exists_with_its_options(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for call in doc_text.commands(page, "adaptkit"):
        arguments = shlex.split(call)[1:]
        if arguments and not arguments[0].startswith("-"):
            name, command, rest = group.resolve_command(group.make_context("adaptkit", list(arguments)), arguments)
            named_alone = ["X"] * sum(parameter.required for parameter in command.params)
            command.make_context(name, rest or named_alone)


@every_page
def test_every_make_target_that_is_shown_exists(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for call in doc_text.commands(page, "make"):
        assert call.split()[1] in targets


@every_page
def test_every_recipe_that_is_shown_is_valid(page: Path, registry: Registry) -> None:
    quickstart = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    for block in doc_text.blocks(page, "yaml"):
        shown = yaml.safe_load(block)
        around = {key: value for key, value in quickstart.items() if key != "strategy" or "stages" not in shown}
        parse_recipe({**around, **shown}, resolver=registry)


@every_page
def test_every_python_block_is_python(page: Path) -> None:
    for block in doc_text.blocks(page, "python"):
        ast.parse(block, filename=title(page))


def test_generated_tables_are_fresh(generate: ModuleType) -> None:
    for name, tables in generate.generated().items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for table, content in tables.items():
            assert generate.replaced(text, table, content) == text, "run `python docs/generate.py`"


def test_a_table_without_its_place_is_an_error(generate: ModuleType) -> None:
    with pytest.raises(ValueError, match="x:begin"):
        generate.replaced("no table here", "x", "content")


def test_every_built_in_strategy_is_in_the_readme(registry: Registry) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    built_in = [name for name, entry in registry.strategies.items() if entry.distribution == "adaptkit-train"]
    built_in = [name for name in built_in if not name.startswith("peft:")]  # docs/strategies.md lists those
    assert not [name for name in built_in if f"| `{name}` |" not in readme]


def test_every_built_in_task_is_in_the_readme_and_has_a_recipe(registry: Registry) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    built_in = {name for name, entry in registry.tasks.items() if entry.distribution == "adaptkit-train"}
    assert not [name for name in built_in if f"| `{name}` |" not in readme]
    shown = [yaml.safe_load(block) for block in doc_text.blocks(ROOT / "docs" / "recipes.md", "yaml")]
    tasks = [recipe.get("task") for recipe in shown]
    assert built_in <= {task["name"] if isinstance(task, dict) else task for task in tasks}


def test_every_recipe_is_listed() -> None:
    listed = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in (ROOT / "recipes").glob("*.yaml") if f"({path.name})" not in listed]


@pytest.mark.parametrize("table", ["movie-reviews", "speed"])
def test_the_readme_has_a_place_for_what_is_measured(table: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count(f"<!-- {table}:begin -->\n") == readme.count(f"\n<!-- {table}:end -->") == 1


def test_every_part_of_the_package_has_its_paragraph() -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    parts = [part.name + ("/" if part.ispkg else ".py") for part in pkgutil.iter_modules(adaptkit.__path__)]
    assert not [part for part in parts if f"`{part}`" not in architecture and part != "__main__.py"]


def test_every_decision_is_listed_under_its_title() -> None:
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    for page in DECISIONS:
        heading = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix(f"# {page.name[:4]} ")
        assert f"[{page.name[:4]}]({page.name}) | {heading} |" in index


@pytest.mark.parametrize("page", DECISIONS, ids=title)
def test_a_decision_has_context_decision_alternatives_and_consequences(page: Path) -> None:
    assert {"context", "decision", "rejected", "consequences"} <= doc_text.anchors(page)


def test_the_picture_reads_on_any_background() -> None:
    picture = (ROOT / "docs" / "images" / "pieces.svg").read_text(encoding="utf-8")
    width, height = re.findall(r'viewBox="0 0 (\d+) (\d+)"', picture)[0]
    assert f'<rect width="{width}" height="{height}"' in picture, "it has no background of its own"
    assert "<title" in picture
