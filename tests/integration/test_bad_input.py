"""Wrong input: one error block that says what to do, before any model is loaded, and nothing is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from in_process import CommandLine, Outcome, write_plugin, write_recipe

pytestmark = pytest.mark.usefixtures("no_heavy_imports")

GOOD = [{"text": f"a film that is number {number}", "label": ("good", "bad")[number % 2]} for number in range(8)]


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def with_row(number: int, **changes: object) -> bytes:
    """The good rows, row `number` (from 1) changed."""
    return lines(*({**row, **changes} if index == number else row for index, row in enumerate(GOOD, 1)))


@dataclass(frozen=True)
class Case:
    """A data set with one thing wrong, and what the error has to say of it."""

    found: str
    where: str = ""
    allowed: str = ""
    fix: str = ""
    train: bytes = lines(*GOOD)
    evaluation: bytes = lines(*GOOD[:4])
    override: str = "training.seed=0"


CASES = {
    "missing file": Case(
        "there is no file or folder 'trian.jsonl'",
        where="trian.jsonl",
        allowed="a file (.jsonl, ",
        fix="did you mean 'train.jsonl'?",
        override="data.train=trian.jsonl",
    ),
    "missing folder": Case(
        "there is no file or folder 'no/such/train.jsonl'",
        where="no/such/train.jsonl",
        fix="the folder 'no/such' does not exist either",
        override="data.train=no/such/train.jsonl",
    ),
    "unknown suffix": Case(
        "the suffix '.yaml' is not one of a data file",
        where="recipe.yaml",
        allowed=".jsonl, .json, .csv, .tsv, .parquet",
        override="data.train=recipe.yaml",
    ),
    "wrong column": Case(
        "there is no column 'text'",
        where="train.jsonl:1",
        allowed="'review', 'label'",
        fix="did you mean 'review'?",
        train=lines(*({"review": row["text"], "label": row["label"]} for row in GOOD)),
    ),
    "misspelt column in the recipe": Case(
        "there is no column 'txet'",
        where="train.jsonl:1",
        allowed="'text', 'label'",
        fix="did you mean 'text'?",
        override="data.columns={text: txet}",
        evaluation=lines(*({"txet": row["text"], "label": row["label"]} for row in GOOD[:4])),
    ),
    "column missing in one row": Case(
        "1 of 8 rows have no column 'label'",
        where="train.jsonl:3",
        allowed="'text'",
        fix="add the column to these rows, or remove them",
        train=lines(*({"text": row["text"]} if index == 2 else row for index, row in enumerate(GOOD))),
    ),
    "empty file": Case(
        "the file is empty", where="train.jsonl", allowed="at least one row", fix="check the export", train=b""
    ),
    "only blank lines": Case("there are no rows in it", where="train.jsonl", allowed="at least one row", train=b"\n\n"),
    "one class only": Case(
        "every training row has the label 'good'",
        where="data.train",
        allowed="two labels or more",
        fix="check the label column",
        train=lines(*({**row, "label": "good"} for row in GOOD)),
        evaluation=lines(GOOD[0]),
    ),
    "label that training never saw": Case(
        "the label 'goood' of the evaluation rows is on no training row",
        where="evaluation.jsonl:2",
        allowed="'bad', 'good'",
        fix="did you mean 'good'?",
        evaluation=lines(GOOD[0], {**GOOD[1], "label": "goood"}),
    ),
    "not UTF-8": Case(
        "byte 0xe9 at offset",
        where="train.jsonl:2",
        allowed="UTF-8",
        fix="iconv -f WINDOWS-1252 -t UTF-8 train.jsonl",
        train=lines(GOOD[0]) + '{"text": "café", "label": "bad"}\n'.encode("latin-1"),
    ),
    "broken JSON": Case(
        "the JSON is broken",
        where="train.jsonl:3:",
        allowed='{"text": ',
        fix="repair this place",
        train=lines(*GOOD[:2]) + b'{"text": "cut o\n' + lines(*GOOD[3:]),
    ),
    "row that is no object": Case(
        "the row is a list, not an object",
        where="train.jsonl:9",
        allowed='{"text": ',
        fix="one a line",
        train=lines(*GOOD, ["text", "good"]),
    ),
    "text is null": Case(
        "the text is null",
        where="train.jsonl:3, column 'text'",
        fix="give the row a text",
        train=with_row(3, text=None),
    ),
    "text is a number": Case(
        "the text is the number 7, not a string",
        where="train.jsonl:4, column 'text'",
        fix='write it as a string, "7"',
        train=with_row(4, text=7),
    ),
    "text is empty": Case(
        "the text is an empty string",
        where="train.jsonl:5, column 'text'",
        fix="give the row a text",
        train=with_row(5, text=""),
    ),
    "text is white space": Case(
        "the text has only white space", where="train.jsonl:5, column 'text'", train=with_row(5, text=" \t")
    ),
    "label is a list": Case(
        "the label is a list",
        where="train.jsonl:6, column 'label'",
        fix="task.kind: multi",
        train=with_row(6, label=["good", "bad"]),
    ),
    "label is null": Case(
        "the label is null",
        where="train.jsonl:6, column 'label'",
        fix="give the row a label",
        train=with_row(6, label=None),
    ),
    "text of an evaluation row is null": Case(
        "the text is null",
        where="evaluation.jsonl:2, column 'text'",
        evaluation=lines(GOOD[0], {**GOOD[1], "text": None}),
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe, good data, and a model that has a config and nothing else."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (tmp_path / "train.jsonl").write_bytes(Case.train)
    (tmp_path / "evaluation.jsonl").write_bytes(Case.evaluation)
    write_recipe(tmp_path, Path("model"), {"train": "train.jsonl", "evaluation": "evaluation.jsonl"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fields(outcome: Outcome) -> dict[str, str]:
    """Reads the one error block on standard error; its other lines, if any, belong to the last field."""
    first, *rest = outcome.stderr.splitlines()
    assert first.startswith("error: ")
    assert not any(line.startswith(("error:", "also:", "Traceback")) for line in rest)
    block = {"found": first.removeprefix("error: ")}
    name = "found"
    for line in rest:
        label, _, text = line.strip().partition(":")
        name = label if label in ("where", "allowed", "fix") else name
        block[name] = block.get(name, "") + (text.strip() if label == name else "\n" + line.strip())
    return block


def test_the_same_data_without_the_mistake_is_good(folder: Path, cli: CommandLine) -> None:
    outcome = cli("validate", "recipe.yaml")
    assert (outcome.code, outcome.stderr) == (0, "")


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_data_that_cannot_be_used_is_one_error_and_leaves_nothing_behind(
    folder: Path, cli: CommandLine, case: Case, command: str
) -> None:
    (folder / "train.jsonl").write_bytes(case.train)
    (folder / "evaluation.jsonl").write_bytes(case.evaluation)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    outcome = cli(command, "recipe.yaml", case.override)
    assert (outcome.code, outcome.stdout) == (3, "")
    block = fields(outcome)
    assert case.found in block["found"]
    for name in ("where", "allowed", "fix"):
        assert getattr(case, name) in block.get(name, "")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not (folder / "run").exists()


def test_everything_that_is_wrong_with_the_data_is_said_at_once(folder: Path, cli: CommandLine) -> None:
    (folder / "train.jsonl").write_bytes(with_row(2, text=None))
    (folder / "evaluation.jsonl").write_bytes(lines(GOOD[0], {"text": "", "label": "new"}))
    outcome = cli("validate", "recipe.yaml")
    assert outcome.code == 3
    assert outcome.stderr.count("error: ") == 1
    assert outcome.stderr.count("also:  ") == 2
    for said in ("train.jsonl:2, column 'text'", "evaluation.jsonl:2, column 'text'", "the label 'new'"):
        assert said in outcome.stderr


def test_of_very_many_problems_the_first_are_shown(folder: Path, cli: CommandLine) -> None:
    (folder / "train.jsonl").write_bytes(lines(*GOOD, *({"text": None, "label": "good"} for _ in range(5_000))))
    outcome = cli("validate", "recipe.yaml")
    assert outcome.code == 3
    assert len(outcome.stderr.splitlines()) < 60
    assert "and 4,990 more" in outcome.stderr


def test_every_mistake_of_a_recipe_is_said_at_once_with_its_place(folder: Path, cli: CommandLine) -> None:
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(
        text.replace("strategy: lora", "strategy: {name: lora, rank: 8}").replace("epochs: 1", "epochs: no")
    )
    outcome = cli("run", "recipe.yaml", "training.sed=1")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.count("error: ") + outcome.stderr.count("also:  ") == 3
    for said in (
        "unknown key 'rank'",
        "recipe.yaml:6:",
        "epochs",
        "command line: training.sed=1",
        "did you mean 'seed'?",
    ):
        assert said in outcome.stderr
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "recipes.yaml"), ("there is no such recipe file", "did you mean 'recipe.yaml'?")),
        (("run", "recipe.yaml", "strategy=lroa"), ("unknown strategy 'lroa'", "did you mean 'lora'?")),
        (("run", "recipe.yaml", "task=text-clasification"), ("did you mean 'text-classification'?",)),
        (("run", "recipe.yaml", "training.optimizer=adam"), ("unknown optimizer 'adam'", "did you mean 'adamw'?")),
        (("run", "recipe.yaml", "strategy"), ("'strategy' is not an override", "key=value")),
        (("run", "recipe.yaml", "model.precision=nf4", "strategy=full"), ("cannot be stored as nf4", "qlora")),
        (("run", "recipe.yaml", "--resume"), ("there is no run to resume", "without --resume")),
        (("predict", "run"), ("either --text or --file",)),
        (("strategies", "lroa"), ("did you mean 'lora'?",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_argument_is_one_error(
    folder: Path, cli: CommandLine, arguments: tuple[str, ...], said: tuple[str, ...]
) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert fields(outcome)
    for words in said:
        assert words in outcome.stderr
    assert not (folder / "run").exists()


def test_a_folder_that_is_taken_is_refused_and_stays_as_it_is(folder: Path, cli: CommandLine) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "thesis.txt").write_text("years of work", encoding="utf-8")
    outcome = cli("run", "recipe.yaml")
    assert outcome.code == 2
    assert "is not empty" in fields(outcome)["found"]
    assert "--new" in fields(outcome)["fix"]
    assert [path.name for path in (folder / "run").iterdir()] == ["thesis.txt"]
    assert (folder / "run" / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_a_plugin_with_a_fault_is_named_when_its_strategy_is_asked_for(
    folder: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plugin(folder / "site", "adaptkit-hopeful", "import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(folder / "site"))
    outcome = cli("run", "recipe.yaml", "strategy=hopeful")
    assert outcome.code == 4
    for said in ("adaptkit-hopeful 1.0", "a_module_that_nobody_has", "pip uninstall adaptkit-hopeful"):
        assert said in outcome.stderr
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    "command", [("evaluate", "run"), ("predict", "run", "--text", "fine")], ids=["evaluate", "predict"]
)
@pytest.mark.parametrize("record", [None, "{", '{"format_version": 99}'], ids=["none", "damaged", "newer format"])
def test_a_run_that_cannot_be_loaded_is_one_error(
    folder: Path, cli: CommandLine, command: tuple[str, ...], record: str | None
) -> None:
    if record is not None:
        (folder / "run" / "adapter").mkdir(parents=True)
        (folder / "run" / "adapter" / "adaptkit.json").write_text(record, encoding="utf-8")
    outcome = cli(*command)
    assert (outcome.code, outcome.stdout) == (6, "")
    assert "adaptkit.json" in fields(outcome)["where"]


def test_a_file_is_no_run(folder: Path, cli: CommandLine) -> None:
    outcome = cli("evaluate", "train.jsonl")
    assert outcome.code == 6
    assert "there is no finished run in 'train.jsonl'" in outcome.stderr
