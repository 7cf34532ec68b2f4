"""What docs/first-strategy.md tells people to do, done: its files, and its commands in their order."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import doc_text
import pytest
from doc_text import ROOT
from in_process import write_recipe

PAGE = ROOT / "docs" / "first-strategy.md"
PACKAGE = Path("adaptkit-bottleneck")
COMMANDS = [line for block in doc_text.blocks(PAGE, "sh") for line in block.splitlines()]
WRITTEN_AFTER = "adaptkit strategies bottleneck"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables of a virtual environment that sees all that is installed here, and takes nothing from the network."""
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/*/site-packages")
    (site / "outside.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    script = folder / "bin" / "adaptkit"
    script.write_text(f"#!{folder}/bin/python\nfrom adaptkit.__main__ import main\nmain()\n", encoding="utf-8")
    script.chmod(0o755)
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **pip, "PATH": path, "ADAPTKIT_DISABLE_PLUGINS": "", "OMP_NUM_THREADS": "1"}


def call(line: str, environment: dict[str, str]) -> str:
    """Runs a command of the page and returns what it printed; it must succeed, and adaptkit must warn of nothing."""
    done = subprocess.run(shlex.split(line), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert "warning: " not in done.stderr or not line.startswith("adaptkit "), f"{line}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(900)
def test_the_page_leads_from_an_empty_folder_to_a_wheel(
    tmp_path: Path,
    tiny_bert: Path,
    tiny_data: dict[str, str],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = tmp_path / "work"
    (work / "recipes").mkdir(parents=True)
    shutil.move(write_recipe(work, tiny_bert, tiny_data), work / "recipes" / "quickstart.yaml")
    monkeypatch.chdir(work)

    begin = COMMANDS.index(WRITTEN_AFTER) + 1
    printed = {line: call(line, environment) for line in COMMANDS[:begin]}
    assert "target_modules" in printed[WRITTEN_AFTER]

    doc_text.write_files(PAGE, PACKAGE)
    printed = {line: call(line, environment) for line in COMMANDS[begin:]}
    assert "Hidden units of each adapter." in printed[WRITTEN_AFTER]

    (evaluated,) = [text for line, text in printed.items() if line.startswith("adaptkit evaluate")]
    assert "accuracy" in evaluated
    (predicted,) = [text for line, text in printed.items() if line.startswith("adaptkit predict")]
    assert '"label"' in predicted
    (wheel,) = Path("dist").glob("*.whl")
    assert {f"adaptkit_bottleneck/{name}.py" for name in ("__init__", "layers")} <= set(
        zipfile.ZipFile(wheel).namelist()
    )


def test_the_method_takes_at_most_60_lines_of_the_authors_own(tmp_path: Path) -> None:
    written = doc_text.write_files(PAGE, tmp_path).rglob("*.py")
    lines = [line for path in written for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert 0 < len(lines) <= 60


def test_the_page_creates_checks_runs_reloads_and_packages() -> None:
    called = {" ".join(line.split()[:2]) for line in COMMANDS if line.startswith("adaptkit ")}
    assert called == {
        f"adaptkit {name}" for name in ("new-plugin", "strategies", "check", "run", "evaluate", "predict")
    }
    assert any(line.startswith("python -m pip wheel") for line in COMMANDS)
