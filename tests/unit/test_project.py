"""What must hold for the repository as a whole."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import adaptkit

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
MACHINE_PATH = re.compile(r"(?<![\w.$}>])/(?:home|root|Users|work|opt|tmp)/\w")
REGISTRY_HOST = re.compile(r"\b(?:pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|deb\.debian\.org)\b")


def tracked_texts() -> list[Path]:
    """Files that git keeps or would keep; all of them text in this repository, but for pictures."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix not in {".png", ".gif", ".ico", ".woff2"}]


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY_HOST], ids=["machine path", "registry host"])
def test_nothing_names_a_machine_or_a_registry(pattern: re.Pattern[str]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked_texts()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found


@pytest.mark.parametrize("path", ["in /home/me/models", '"/tmp/run"', "file:///opt/models"])
def test_a_machine_path_is_recognised(path: str) -> None:
    assert MACHINE_PATH.search(path)


@pytest.mark.parametrize("path", ["https://example.com/home/page", "recipes/tmp/x", "$HOME/tmp/x"])
def test_other_paths_are_not_taken_for_one(path: str) -> None:
    assert not MACHINE_PATH.search(path)


def test_no_public_name_is_also_a_submodule() -> None:
    submodules = {module.name for module in pkgutil.iter_modules(adaptkit.__path__)}
    assert not submodules & set(adaptkit.__all__)


def test_every_public_name_exists() -> None:
    for name in adaptkit.__all__:
        assert hasattr(adaptkit, name)


def test_types_and_licence_ship_with_the_package() -> None:
    assert (ROOT / "adaptkit" / "py.typed").is_file()
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"


def test_the_console_script_exists() -> None:
    module, _, function = PROJECT["scripts"]["adaptkit"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_newest_version_of_the_changelog_is_the_projects() -> None:
    versions = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == PROJECT["version"]


def test_every_dependency_is_pinned_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition(";")[0].strip() for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {distribution(pin) for pin in pins}
    wanted = [*PROJECT["dependencies"], *(d for extra in PROJECT["optional-dependencies"].values() for d in extra)]
    assert {distribution(requirement) for requirement in wanted} <= pinned


def distribution(requirement: str) -> str:
    """Returns the normalised name of a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_names_everything_that_a_run_needs(recipe: Path) -> None:
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert {"model", "task", "data", "strategy", "output"} <= content.keys()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_says_on_top_by_which_command_it_runs(recipe: Path) -> None:
    top = recipe.read_text(encoding="utf-8").partition("\n\n")[0]
    assert f"adaptkit run recipes/{recipe.name}" in top


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_runs_into_a_folder_of_its_own(recipe: Path) -> None:
    outputs = [yaml.safe_load(path.read_text(encoding="utf-8"))["output"] for path in RECIPES]
    assert outputs.count(yaml.safe_load(recipe.read_text(encoding="utf-8"))["output"]) == 1


PLUGINS = sorted((ROOT / "plugins").glob("*/pyproject.toml"))


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: file.parent.name)
def test_every_plugin_carries_the_licence_that_it_names(file: Path) -> None:
    """A wheel holds what stands beside its pyproject; it is installed without this repository."""
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    assert (project["license"], project["license-files"]) == (PROJECT["license"], ["LICENSE"])
    assert (file.parent / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
