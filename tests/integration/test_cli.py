"""What a person sees of the command line when all is well."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from in_process import CommandLine, write_plugin, write_recipe

from adaptkit.cli.app import app
from adaptkit.registry import load_registry

COMMANDS = (
    "run",
    "evaluate",
    "predict",
    "validate",
    "schema",
    "strategies",
    "tasks",
    "optimizers",
    "plugins",
    "doctor",
)
LISTINGS = ("strategies", "tasks", "optimizers", "plugins", "strategies lora", "tasks text-classification")


@pytest.fixture
def recipe(tmp_path: Path, tiny_bert: Path, tiny_data: dict[str, str]) -> Path:
    return write_recipe(tmp_path, tiny_bert, tiny_data)


def words(text: str) -> str:
    """The text without its line breaks and columns."""
    return " ".join(text.split())


# -- help, version, lists ----------------------------------------------------------------------------


def test_help_names_every_command_with_a_whole_sentence(cli: CommandLine) -> None:
    outcome = cli("--help")
    assert (outcome.code, outcome.stderr) == (0, "")
    commands = {str(command.name) for command in app.registered_commands if not command.hidden}
    assert set(COMMANDS) <= commands
    for command in commands:
        (line,) = (line for line in outcome.stdout.splitlines() if line.startswith(f"  {command} "))
        assert line.endswith(".")
        assert not line.endswith("...")


def test_the_version_comes_with_the_distribution_that_provides_it(cli: CommandLine) -> None:
    assert cli("--version").stdout == "adaptkit 0.1.0 (distribution adaptkit-train)\n"


@pytest.mark.parametrize("columns", [80, 100, 200])
@pytest.mark.parametrize("command", LISTINGS)
def test_a_list_fits_the_terminal_and_never_needs_more_than_100_columns(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, command: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    outcome = cli(*command.split())
    assert (outcome.code, outcome.stderr) == (0, "")
    assert max(map(len, outcome.stdout.splitlines())) <= min(columns, 100)
    assert not any(line.endswith(" ") for line in outcome.stdout.splitlines())


@pytest.mark.parametrize("kind", ["strategies", "tasks", "optimizers"])
def test_a_list_has_every_name_and_where_it_comes_from(cli: CommandLine, kind: str) -> None:
    listed = cli(kind).stdout.splitlines()[1:]
    for name, entry in getattr(load_registry(), kind).items():
        (line,) = (line for line in listed if line.split()[0] == name)
        assert f"{entry.distribution} {entry.version}" in line


def test_a_strategy_is_explained_with_its_options_their_bounds_and_defaults(cli: CommandLine) -> None:
    shown = cli("strategies", "lora").stdout
    lora = load_registry().strategies["lora"].value
    assert lora.__doc__
    assert lora.__doc__.partition("\n")[0] in shown
    for name, field in lora.Options.model_fields.items():
        if name != "name":
            (line,) = (line for line in shown.splitlines() if line.startswith(f"{name} "))
            assert str(field.default).lower() in line
    assert "a whole number at least 1" in shown
    assert "mergeable" in shown


def test_a_task_is_explained_with_its_columns(cli: CommandLine) -> None:
    shown = words(cli("tasks", "text-classification").stdout)
    assert "every row text" in shown
    assert "labelled rows label" in shown
    assert "optional text_pair" in shown


def test_plugins_are_listed_with_what_they_bring_and_broken_ones_with_reason_and_fix(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = "from adaptkit import hookimpl\n\n@hookimpl\ndef adaptkit_step_end(record): ...\n"
    write_plugin(tmp_path, "adaptkit-test-watcher", watcher)
    write_plugin(tmp_path, "adaptkit-test-broken", "import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = cli("plugins")
    assert outcome.code == 0
    listed, _, left_out = outcome.stdout.partition("left out:")
    assert "adaptkit-test-watcher 1.0 adaptkit_test_watcher watches: step_end" in words(listed)
    assert "strategies: full" in listed
    assert "PluginInfo" not in outcome.stdout
    assert "adaptkit-test-broken 1.0: it cannot be imported: ModuleNotFoundError" in left_out
    assert "fix:     install the missing module a_module_that_nobody_has" in left_out
    assert "note: `adaptkit plugins` says what is wrong with adaptkit-test-broken" in cli("strategies").stdout
    monkeypatch.setenv("ADAPTKIT_DISABLE_PLUGINS", "adaptkit-test-watcher")
    assert "disabled by ADAPTKIT_DISABLE_PLUGINS" in words(cli("plugins").stdout)


# -- recipes -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_heavy_imports")
def test_validate_says_what_would_run(cli: CommandLine, recipe: Path) -> None:
    outcome = cli("validate", recipe, "strategy=full")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "is good: full on" in outcome.stdout
    assert "44 train, 20 evaluation" in outcome.stdout
    assert "6 of 8 rows each, learning rate" in outcome.stdout
    assert not (recipe.parent / "run").exists()
    (recipe.parent / "run").mkdir()
    assert "--new or --resume" in cli("validate", recipe).stdout


@pytest.mark.usefixtures("no_heavy_imports")
def test_a_resolved_recipe_is_a_recipe_with_every_default_and_resolves_to_itself(
    cli: CommandLine, recipe: Path
) -> None:
    resolved = cli("validate", recipe, "--resolved").stdout
    assert yaml.safe_load(resolved)["training"]["learning_rate"] == 1e-3
    assert yaml.safe_load(resolved)["strategy"]["r"] == 16
    written = recipe.with_name("resolved.yaml")
    written.write_text(resolved, encoding="utf-8")
    assert cli("validate", written, "--resolved").stdout == resolved


def test_the_schema_accepts_the_resolved_recipe_and_refuses_a_misspelt_one(cli: CommandLine, recipe: Path) -> None:
    schema = json.loads(cli("schema").stdout)
    resolved = yaml.safe_load(cli("validate", recipe, "--resolved").stdout)
    jsonschema.validate(resolved, schema)
    resolved["strategy"]["rnak"] = 8
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(resolved, schema)


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ["--debug strategies lroa", "strategies --debug lroa", "strategies lroa --debug"])
def test_debug_shows_the_traceback_wherever_it_stands(cli: CommandLine, arguments: str) -> None:
    outcome = cli(*arguments.split())
    assert outcome.code == 2
    assert outcome.stderr.startswith("Traceback")
    assert "\nerror: unknown strategy 'lroa'" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("valdate x", "Did you mean 'validate'"), ("run", "RECIPE"), ("run x --nwe", "--new"), ("evaluate", "RUN")],
)
def test_a_wrong_command_line_exits_with_2_and_a_hint(cli: CommandLine, arguments: str, said: str) -> None:
    outcome = cli(*arguments.split())
    assert outcome.code == 2
    assert said in outcome.stderr


# -- whole runs --------------------------------------------------------------------------------------


def test_a_run_reports_and_can_be_measured_and_asked(cli: CommandLine, recipe: Path, tiny_data: dict[str, str]) -> None:
    folder = recipe.parent / "run"
    trained = cli("run", recipe)
    assert (trained.code, trained.stderr) == (0, "")
    for said in (
        "parameters train",
        "44 training, 20 evaluation",
        "6 steps of 8 rows",
        "step 1/6",
        "eval/accuracy",
        f"saved in {folder}",
    ):
        assert said in trained.stdout

    measured = cli("evaluate", folder)
    assert measured.stdout.startswith(f"{tiny_data['evaluation']}: loss ")
    accuracy = json.loads((folder / "results.json").read_text(encoding="utf-8"))["metrics"]["eval/accuracy"]
    assert f"accuracy {accuracy:.4f}" in measured.stdout

    asked = cli("predict", folder, "--file", tiny_data["evaluation"])
    predictions = [json.loads(line) for line in asked.stdout.splitlines()]
    assert len(predictions) == 20
    assert all(prediction["label"] in prediction["scores"] for prediction in predictions)


def test_a_second_run_takes_the_next_free_name(cli: CommandLine, recipe: Path) -> None:
    (recipe.parent / "run").mkdir()
    (recipe.parent / "run" / "mine.txt").write_text("mine", encoding="utf-8")
    outcome = cli("run", recipe, "--new", "strategy=linear-probe")
    assert f"saved in {recipe.parent / 'run-2'}" in outcome.stdout
    assert [path.name for path in (recipe.parent / "run").iterdir()] == ["mine.txt"]


def test_a_finished_run_is_not_run_again(cli: CommandLine, recipe: Path) -> None:
    assert cli("run", recipe, "strategy=linear-probe").code == 0
    before = (recipe.parent / "run" / "results.json").read_bytes()
    outcome = cli("run", recipe, "strategy=linear-probe", "--resume")
    assert outcome.code == 0
    assert outcome.stderr.startswith("warning: the run in")
    assert (recipe.parent / "run" / "results.json").read_bytes() == before


def test_on_a_terminal_there_is_a_bar_and_no_word_of_other_libraries(recipe: Path) -> None:
    """In a process of its own, in which every library is imported anew, with the strategy that uses all of them."""
    pty = pytest.importorskip("pty")
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "adaptkit", "run", str(recipe), "strategy=qlora", "training.max_steps=2"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=terminal, stderr=subprocess.PIPE, env=environment) as process:
        os.close(terminal)
        shown = read_all(screen)
        assert process.stderr
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert "━" in shown
    assert "loading" in shown
    # What bar and spinner leave behind is drawn over: nothing of it in the whole lines.
    whole_lines = [line.rpartition("\x1b[2K")[2] for line in shown.replace("\r\n", "\n").split("\n")]
    first_words = {
        line.split()[0]
        for line in whole_lines
        if line.strip() and "━" not in line and not any(word in line for word in ("loading", "planning", "tokenizing"))
    }
    assert first_words == {"rows:", "sequences:", "as", "|", "qlora", "2", "step", "done", "saved", "ask"}


def read_all(screen: int) -> str:
    """Reads a pseudo terminal until the other side is closed, which Linux reports as an error."""
    shown = b""
    try:
        while part := os.read(screen, 65536):
            shown += part
    except OSError:
        pass
    os.close(screen)
    return shown.decode()


# -- doctor ------------------------------------------------------------------------------------------


def test_the_doctor_shows_versions_and_machine(cli: CommandLine) -> None:
    import torch

    outcome = cli("doctor")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert f"torch {torch.__version__} >=2" in words(outcome.stdout)
    for name in ("python", "transformers", "peft", "bitsandbytes", "memory", "device", "arithmetic"):
        assert f"\n{name} " in outcome.stdout
    assert outcome.stdout.endswith("all good\n")


def test_the_doctor_names_what_is_wrong_and_fails(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plugin(tmp_path, "adaptkit-test-broken", "import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = cli("doctor")
    assert outcome.code == 1
    assert "error: plugin adaptkit-test-broken 1.0" in outcome.stderr
    assert "all good" not in outcome.stdout


# -- what is printed to be pasted ----------------------------------------------------------------------


def test_commands_to_paste_work_for_a_folder_whose_name_has_a_space(
    cli: CommandLine, tmp_path: Path, tiny_bert: Path, tiny_data: dict[str, str]
) -> None:
    folder = tmp_path / "my run's"
    done = cli("run", write_recipe(tmp_path, tiny_bert, tiny_data, max_steps=1), f"output={folder}")
    assert done.code == 0, done.stderr
    card = (folder / "README.md").read_text(encoding="utf-8")
    printed = [line for line in (done.stdout + card).splitlines() if "adaptkit predict" in line or "--data" in line]
    assert len(printed) == 3
    for line in printed:
        assert str(folder) in shlex.split(line)
    changed = cli("run", tmp_path / "recipe.yaml", f"output={folder}", "training.seed=1", "--resume")
    (fix,) = (line for line in changed.stderr.splitlines() if "resume with the run's own recipe" in line)
    assert str(folder / "recipe.yaml") in shlex.split(fix.partition("own recipe:")[2])


def test_an_output_of_any_name_is_validated(recipe: Path, cli: CommandLine) -> None:
    outcome = cli("validate", recipe, f"output={'x' * 300}")
    assert (outcome.code, outcome.stderr) == (0, "")
