"""Commands that only look import nothing that takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "sklearn", "accelerate", "pyarrow", "numpy")
CODE = f"""
import json, sys
from adaptkit.__main__ import main
try:
    main()
except SystemExit as exited:
    code = exited.code
print(json.dumps([code, sorted(set(sys.modules) & set({HEAVY!r}))]), file=sys.stderr)
"""
COMMANDS = (
    "--help",
    "--version",
    "run --help",
    "validate recipe.yaml",
    "validate recipe.yaml --resolved",
    "schema",
    "strategies",
    "strategies qlora",
    "tasks",
    "tasks text-classification",
    "optimizers",
    "plugins",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a recipe, its data, and a model that has a config and nothing else."""
    path = tmp_path_factory.mktemp("project")
    (path / "model").mkdir()
    (path / "model" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    rows = [json.dumps({"text": f"film {number}", "label": number % 2}) for number in range(8)]
    (path / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    recipe = {
        "model": "model",
        "task": "text-classification",
        "data": {"train": "train.jsonl"},
        "strategy": "prefix-tuning",
        "output": "run",
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_only_looks_imports_nothing_heavy(folder: Path, command: str) -> None:
    environment = {**os.environ, "ADAPTKIT_DISABLE_PLUGINS": "all"}
    arguments = [sys.executable, "-c", CODE, *command.split()]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    code, heavy = json.loads(done.stderr.splitlines()[-1])
    assert (code, heavy) == (0, [])


def test_help_does_not_even_read_the_models_of_recipes(folder: Path) -> None:
    code = CODE.replace("import json, sys", "import json, sys; sys.modules['pydantic'] = None")
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stderr)[0] == 0
