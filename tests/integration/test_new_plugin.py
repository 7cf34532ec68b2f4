"""`adaptkit new-plugin` writes a package that pip installs, that is listed, trains by name and keeps the contract."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from in_process import CommandLine, pip_install, write_recipe

import adaptkit
from adaptkit.cli.author import FILES

ROOT = Path(__file__).parents[2]
NAME = "my-method"
PACKAGE = f"adaptkit-{NAME}"
MODULE = "adaptkit_my_method"
KEYWORDS = ("none", "true", "false")
# Each gives a class that is called like something which the template imports or writes.
AWKWARD = ("strategy", "capabilities", "hookimpl", "field", "scaled", "strategy-options")


@pytest.fixture
def package(cli: CommandLine, tmp_path: Path) -> Path:
    """The folder that the command writes."""
    written = cli("new-plugin", NAME, "--into", tmp_path)
    assert (written.code, written.stderr) == (0, "")
    return tmp_path / PACKAGE


@pytest.fixture
def site(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder into which pip has installed the package, seen as if it were in the environment."""
    site = pip_install(shutil.copytree(package, tmp_path / "source"), tmp_path)
    monkeypatch.syspath_prepend(str(site))
    yield site
    for name in [name for name in sys.modules if name.startswith(MODULE)]:
        del sys.modules[name]


@pytest.mark.usefixtures("no_heavy_imports")
def test_it_writes_a_package_and_says_what_comes_next(cli: CommandLine, tmp_path: Path) -> None:
    written = cli("new-plugin", NAME, "--into", tmp_path / "new")
    assert (written.code, written.stderr) == (0, "")
    folder = tmp_path / "new" / PACKAGE
    assert len([path for path in folder.rglob("*") if path.is_file()]) == len(FILES)
    commands = [line.strip() for line in written.stdout.splitlines() if line.startswith("  ")]
    assert commands == [
        f"python -m pip install --editable {folder}",
        f"adaptkit strategies {NAME}",
        f"adaptkit check {NAME}",
        f"adaptkit run RECIPE strategy={NAME} output=runs/{NAME}",
    ]


def test_what_it_writes_is_well_formed_and_short(package: Path) -> None:
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        ast.parse(text)
        assert len([line for line in text.splitlines() if line.strip()]) <= 40
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["adaptkit"] == {NAME: MODULE}
    assert project["dependencies"][0].startswith("adaptkit-train>=")
    workflow = yaml.safe_load((package / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    assert "${{ matrix.python-version }}" in str(workflow)
    for path in package.rglob("*"):
        assert path.is_dir() or "$module" not in path.read_text(encoding="utf-8")


def test_what_it_writes_passes_the_linter(package: Path) -> None:
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "--select", "E,F,B,UP"], ["format", "--check"]):
        options = ["--isolated", "--no-cache", "--line-length", "120"]
        done = subprocess.run([*ruff, *command, *options], cwd=package, capture_output=True)
        assert done.returncode == 0, done.stdout.decode()


@pytest.mark.usefixtures("site")
def test_its_strategy_is_listed_with_its_options_and_trains_by_name(
    cli: CommandLine, tmp_path: Path, tiny_bert: Path, tiny_data: dict[str, str]
) -> None:
    import torch
    from safetensors.torch import load_file

    explained = cli("strategies", NAME)
    assert f"{NAME}  ({PACKAGE} 0.1.0, {MODULE})" in explained.stdout
    assert "target_modules" in explained.stdout

    recipe = write_recipe(tmp_path, tiny_bert, tiny_data, epochs=3)
    trained = cli("run", recipe, f"strategy={NAME}")
    assert (trained.code, trained.stderr) == (0, "")
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith(".scale")}
    assert len(scales) == 12  # the six linear layers of two blocks
    assert all(not torch.equal(scale, torch.ones_like(scale)) for scale in scales.values())
    assert {name.split(".")[0] for name in tensors.keys() - scales.keys()} == {"classifier"}

    run = adaptkit.load(tmp_path / "run")
    again = run.evaluate(tiny_data["evaluation"])
    assert {f"eval/{name}": value for name, value in again.items()} == pytest.approx(run.metrics, abs=1e-6)

    nowhere = cli("run", recipe, f"strategy={{name: {NAME}, target_modules: [qery]}}", f"output={tmp_path / 'no'}")
    assert nowhere.code == 2
    assert "no linear layer" in nowhere.stderr


@pytest.mark.timeout(600)
def test_its_own_test_passes_as_it_is_written(site: Path, package: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site), "ADAPTKIT_DISABLE_PLUGINS": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout
    assert "failed" not in done.stdout


@pytest.mark.parametrize("name", AWKWARD)
def test_a_name_like_one_that_the_template_uses_gives_a_plugin_that_loads(
    name: str, cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("new-plugin", name, "--into", tmp_path).code == 0
    module = f"adaptkit_{name.replace('-', '_')}"
    monkeypatch.syspath_prepend(str(tmp_path / f"adaptkit-{name}"))
    __import__(module)
    try:
        found: list[type] = []
        sys.modules[module].adaptkit_register_strategies(found.append)
        (strategy,) = found
        assert (strategy.name, strategy.capabilities.starts_as_base) == (name, True)  # type: ignore[attr-defined]
        assert strategy.Options(name=name).target_modules is None  # type: ignore[attr-defined]
    finally:
        del sys.modules[module]


@pytest.mark.parametrize("name", ["My-Method", "my_method", "3d", "a--b", "-a", "a-", "", "ä", "a/b", "..", *KEYWORDS])
def test_a_name_that_no_strategy_can_have_is_refused(name: str, cli: CommandLine, tmp_path: Path) -> None:
    refused = cli("new-plugin", "--into", tmp_path, "--", name)
    assert refused.code == 2
    assert f"error: {name!r} cannot be the name of a strategy" in refused.stderr
    assert "allowed: lower-case letters" in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "found", "fix"),
    [
        ("lora", "there is a strategy 'lora' already, of adaptkit-train", "adaptkit strategies"),
        ("adaptkit-mine", "the name of a distribution", "adaptkit new-plugin mine"),
        ("train", "a distribution 'adaptkit-train' is installed already", "another name"),
    ],
)
def test_a_name_that_is_taken_is_refused_with_what_to_do(
    name: str, found: str, fix: str, cli: CommandLine, tmp_path: Path
) -> None:
    refused = cli("new-plugin", name, "--into", tmp_path)
    assert refused.code == 2
    assert found in refused.stderr
    assert fix in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["empty folder", "full folder", "file", "dangling link"])
def test_what_is_there_is_never_written_into(there: str, cli: CommandLine, tmp_path: Path) -> None:
    taken = tmp_path / PACKAGE
    if there.endswith("folder"):
        taken.mkdir()
    if there == "full folder":
        (taken / "pyproject.toml").write_text("mine", encoding="utf-8")
    elif there == "file":
        taken.write_text("mine", encoding="utf-8")
    elif there == "dangling link":
        taken.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    refused = cli("new-plugin", NAME, "--into", tmp_path)
    assert refused.code == 2
    assert f"error: {str(taken)!r} is there already" in refused.stderr
    assert "fix:     choose another name, or another place: --into DIR" in refused.stderr
    assert sorted(tmp_path.rglob("*")) == before
    assert there != "full folder" or (taken / "pyproject.toml").read_text(encoding="utf-8") == "mine"


def test_a_place_that_is_no_folder_is_an_error_block(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    refused = cli("new-plugin", NAME, "--into", tmp_path / "file")
    assert refused.code == 2
    assert "cannot be made" in refused.stderr


def test_an_installed_wheel_brings_every_template(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "adaptkit", source / "adaptkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    subprocess.run(command, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    templates = {path.name for path in (ROOT / "adaptkit" / "templates" / "plugin").iterdir()}
    assert templates == set(FILES.values())
    assert {f"adaptkit/templates/plugin/{name}" for name in templates} <= set(names)
