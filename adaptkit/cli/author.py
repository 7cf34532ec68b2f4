"""new-plugin: for people who write a strategy of their own."""

from __future__ import annotations

import importlib.metadata
import keyword
import re
import shlex
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated

import typer

from adaptkit.errors import RecipeError

if TYPE_CHECKING:
    from adaptkit.registry import Registry

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
PREFIX = "adaptkit-"
# Path in the package that is written, and the template of its text. They end in .txt: no tool is to take them for code.
FILES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "$module/__init__.py": "strategy.py.txt",
    "$module/layers.py": "layers.py.txt",
    "tests/test_conformance.py": "test_conformance.py.txt",
    ".github/workflows/test.yml": "test.yml.txt",
    ".gitignore": "gitignore.txt",
}


def add_commands(app: typer.Typer) -> None:
    """Adds this module's command."""
    app.command("new-plugin")(new_plugin)


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What recipes will call the strategy: my-method.")],
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="Where the package's folder is made.")] = Path(),
) -> None:
    """Write a package with a strategy that works, to be replaced by your own."""
    from adaptkit.registry import load_registry

    _check_name(name, load_registry())
    folder = into / f"{PREFIX}{name}"
    written = _write(folder, _words(name))
    package = shlex.quote(folder.as_posix() if folder.is_absolute() else f"./{folder.as_posix()}")
    print(f"wrote {folder}: {', '.join(written)}")
    print("\nit works already; try it, then replace the method:")
    print(f"  python -m pip install --editable {package}")
    for command in (f"strategies {name}", f"check {name}", f"run RECIPE strategy={name} output=runs/{name}"):
        print(f"  adaptkit {command}")


def _words(name: str) -> dict[str, str]:
    """Returns what the templates are filled with."""
    from adaptkit.plugins import DISTRIBUTION

    cls = "".join(part.capitalize() for part in name.split("-"))
    distribution = f"{PREFIX}{name}"
    version = importlib.metadata.version(DISTRIBUTION)
    module = distribution.replace("-", "_")
    return {"name": name, "cls": cls, "distribution": distribution, "module": module, "version": version}


def _check_name(name: str, registry: Registry) -> None:
    """Makes sure that a strategy and a distribution can be called so, and that none is."""
    where = "NAME"
    if not NAME.fullmatch(name) or keyword.iskeyword(name.capitalize()):
        raise RecipeError(
            f"{name!r} cannot be the name of a strategy",
            where=where,
            allowed="lower-case letters, digits and single hyphens, a letter first: my-method",
        )
    if name.startswith(PREFIX):
        raise RecipeError(
            f"{name!r} is the name of a distribution, not of a strategy",
            where=where,
            fix=f"leave {PREFIX!r} out: adaptkit new-plugin {name.removeprefix(PREFIX)}",
        )
    if name in registry.strategies:
        entry = registry.strategies[name]
        raise RecipeError(
            f"there is a strategy {name!r} already, of {entry.distribution} {entry.version}",
            where=where,
            fix="choose a name that `adaptkit strategies` does not list",
        )
    if PREFIX + name in _installed():
        raise RecipeError(
            f"a distribution {PREFIX + name!r} is installed already",
            where=where,
            fix="choose another name, or work on that package",
        )


def _installed() -> set[str]:
    """Returns the names of the installed distributions, as pip compares them."""
    names = (distribution.metadata["Name"] for distribution in importlib.metadata.distributions())
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names if name}


def _write(folder: Path, words: dict[str, str]) -> list[str]:
    """Writes every file of the package into a new folder, and returns their paths in it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        fix = "choose another name, or another place: --into DIR"
        taken = folder.is_symlink() or folder.exists()
        found = f"{str(folder)!r} is there already" if taken else f"{str(folder)!r} cannot be made: {error.strerror}"
        raise RecipeError(found, where="--into", fix=fix) from error
    templates = files("adaptkit") / "templates" / "plugin"
    written = []
    for target, template in FILES.items():
        path = folder / Template(target).substitute(words)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = Template((templates / template).read_text(encoding="utf-8")).substitute(words)
        path.write_text(text, encoding="utf-8")
        written.append(path.relative_to(folder).as_posix())
    return written
