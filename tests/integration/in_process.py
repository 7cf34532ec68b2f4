"""The real command line inside the test's own process, and what it is given there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from adaptkit.cli.app import main


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, and what it printed."""

    code: int
    stdout: str
    stderr: str


class CommandLine:
    """Calls commands; ``cli("validate", "recipe.yaml")``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Outcome:
        self._patch.setattr(sys, "argv", ["adaptkit", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        printed = self._capsys.readouterr()
        code = exited.value.code
        return Outcome(code if isinstance(code, int) else 0, printed.out, printed.err)


def write_recipe(folder: Path, model: Path, data: Mapping[str, str], **training: object) -> Path:
    """Writes a recipe of one epoch with fp32 arithmetic; its run goes to ``folder/run``."""
    path = folder / "recipe.yaml"
    values = {
        "model": str(model),
        "task": "text-classification",
        "data": dict(data),
        "strategy": "lora",
        "training": {"epochs": 1, "effective_batch": 8, "compute": "fp32", **training},
        "output": str(folder / "run"),
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def write_plugin(site: Path, distribution: str, code: str) -> None:
    """Writes what pip leaves behind of a distribution of one module with one entry point, into ``site``."""
    module = distribution.replace("-", "_")
    info = site / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[adaptkit]\n{module} = {module}\n", encoding="utf-8")
    (site / f"{module}.py").write_text(code, encoding="utf-8")


def pip_install(source: Path, folder: Path) -> Path:
    """Lets pip install the distribution in ``source`` into a folder below ``folder``, and returns that."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder / "site"), str(source)]
    subprocess.run(command, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return folder / "site"
