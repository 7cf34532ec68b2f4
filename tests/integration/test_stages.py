"""Stages: each is a whole run, begins where the one before ended, head included, and resumes like any run."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from forked_runs import finish, start
from in_process import CommandLine
from safetensors.torch import load_file, save_file

import adaptkit
from adaptkit.artifact.merging import plain_model
from adaptkit.artifact.run import Run
from adaptkit.errors import AdaptkitError, CheckpointError, ModelError, RecipeError
from adaptkit.recipe import Recipe, StagedRecipe, parse_recipe
from adaptkit.registry import load_registry
from adaptkit.stages import chained

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDERS = ["1-linear-probe", "2-lora", "3-full"]
PROBE_LORA_FULL: list[dict[str, Any]] = [
    {"strategy": "linear-probe", "training": {"epochs": 1}},
    {"strategy": {"name": "lora", "r": 4}},
    {"strategy": "full", "training": {"learning_rate": 1e-4}},
]


def values(model: Path, data: dict[str, str], output: Path, stages: Any, **more: Any) -> dict[str, Any]:
    return {
        "model": {"name": str(model), "precision": "fp32"},
        "task": {"name": "text-classification", **more},
        "data": dict(data),
        "training": {"effective_batch": tiny.EFFECTIVE_BATCH, "compute": "fp32", "epochs": 2, "evaluate_every": 0.5},
        "stages": stages,
        "output": str(output),
    }


@pytest.fixture(scope="module")
def staged(tiny_bert: Path, tiny_data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe, LoRA and full fine-tuning, one after another."""
    folder = tmp_path_factory.mktemp("staged")
    recipe, output = folder / "recipe.yaml", folder / "run"
    recipe.write_text(yaml.safe_dump(values(tiny_bert, tiny_data, output, PROBE_LORA_FULL)), encoding="utf-8")
    assert finish(start("run", str(recipe))) == 0
    return output


@pytest.fixture
def write(tiny_bert: Path, tiny_data: dict[str, str], tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe with stages, and returns its file."""

    def make(stages: Any = PROBE_LORA_FULL, **more: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(
            yaml.safe_dump({**values(tiny_bert, tiny_data, tmp_path / "run", stages), **more}), encoding="utf-8"
        )
        return path

    return make


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


def recipe_on(base: Path, data: dict[str, str], output: Path, *, head: str = "keep", **changes: Any) -> Recipe:
    section = {"model": {"name": str(base), "head": head}, "task": "text-classification", "strategy": "lora"}
    training = {"max_steps": 1, "compute": "fp32", "effective_batch": 8}
    made = {**section, "data": dict(data), "training": training, "output": str(output), **changes}
    return parse_recipe(made, resolver=load_registry())


def test_a_stage_begins_at_the_figures_at_which_the_one_before_ended(staged: Path) -> None:
    before, *later = [adaptkit.load(staged / name) for name in FOLDERS]
    for run in later:
        begun, ended = run.unadapted().evaluate(), before.evaluate()
        assert begun == pytest.approx(ended, abs=1e-6)
        assert ended["loss"] == pytest.approx(before.metrics["eval/loss"], abs=1e-6)
        assert run.evaluate() != ended
        before = run


def test_the_first_step_of_a_stage_has_the_loss_of_the_model_before(
    tiny_bert_without_dropout: Path, tiny_data: dict[str, str], tmp_path: Path
) -> None:
    # One step over all rows: its loss is that of the model as it begins.
    whole = values(tiny_bert_without_dropout, tiny_data, tmp_path / "run", PROBE_LORA_FULL, head_dropout=0.0)
    whole["training"] |= {"effective_batch": tiny.TRAIN_ROWS, "max_steps": 1, "learning_rate": 1e-3}
    whole["training"].pop("epochs")
    adaptkit.run(parse_recipe(whole, resolver=load_registry()))
    for before, after in itertools.pairwise(FOLDERS):
        ended = adaptkit.load(tmp_path / "run" / before).evaluate(tiny_data["train"])["loss"]
        log = (tmp_path / "run" / after / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(log[0])["train/loss"] == pytest.approx(ended, abs=1e-6)


def test_every_stage_is_a_whole_run(staged: Path) -> None:
    assert sorted(entry.name for entry in staged.iterdir()) == [*FOLDERS, "recipe.yaml", "stages.json"]
    for name in FOLDERS:
        assert {"README.md", "adapter", "metrics.jsonl", "recipe.yaml", "results.json"} <= {
            entry.name for entry in (staged / name).iterdir()
        }
    assert [Run(staged / name).recipe.strategy.name for name in FOLDERS] == ["linear-probe", "lora", "full"]


def test_the_rows_are_shown_once_and_the_seconds_are_those_of_all_stages(
    write: Callable[..., Path], cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adaptkit.reporting.progress.duration", lambda seconds: f"{seconds:.6f} s")
    done = cli("run", write([{"strategy": "linear-probe"}, {"strategy": "lora"}], training={"max_steps": 1}))
    assert done.code == 0, done.stderr
    assert done.stdout.count("rows: 44 training") == done.stdout.count("2 labels: ") == 1
    one, other = (Run(tmp_path / "run" / name) for name in ("1-linear-probe", "2-lora"))
    assert f"done in {one.results['seconds'] + other.results['seconds']:.6f} s" in done.stdout
    assert one.seconds == one.results["seconds"]
    assert adaptkit.load(tmp_path / "run").seconds == one.seconds + other.results["seconds"]


def test_the_whole_is_opened_as_its_last_stage(staged: Path, cli: CommandLine) -> None:
    assert adaptkit.load(staged).directory == staged / "3-full"
    figures = cli("evaluate", staged)
    assert figures.stdout == cli("evaluate", staged / "3-full").stdout
    assert figures.code == cli("predict", staged, "--text", "a good film").code == 0


def test_the_whole_is_a_base_as_its_last_stage_is(staged: Path, tiny_data: dict[str, str], tmp_path: Path) -> None:
    run = adaptkit.run(recipe_on(staged, tiny_data, tmp_path / "on-top"))
    assert run.recipe.model.name == str(staged / "3-full")
    assert run.unadapted().evaluate() == pytest.approx(adaptkit.load(staged).evaluate(), abs=1e-6)


def outcome(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in FOLDERS:
        log = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text("utf-8").splitlines()]
        tensors = (folder / name / "adapter" / "adapter_model.safetensors").read_bytes()
        figures = json.loads((folder / name / "results.json").read_text("utf-8"))["metrics"]
        found[name] = (hashlib.sha256(tensors).hexdigest(), [line.get("train/loss") for line in log], figures)
    return found


def test_killed_in_any_stage_it_resumes_to_the_same_bits(
    staged: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    recipe, run = write(), tmp_path / "run"
    # Within the first stage, before the second has begun, within it, and within the last.
    for moment in (("write_checkpoint", 2), ("claimed", 1), ("write_checkpoint", 3), ("write_checkpoint", 4)):
        options = ["--resume"] if run.exists() else []
        assert finish(start("run", str(recipe), *options, die_at=moment)) == -signal.SIGKILL
    assert (run / "3-full" / "recipe.yaml").is_file()
    assert not (run / "3-full" / "results.json").exists()
    assert finish(start("run", str(recipe), "--resume")) == 0
    assert outcome(run) == outcome(staged)


def test_a_finished_stage_is_not_run_again(staged: Path, cli: CommandLine, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(staged, copied)
    recipe = copied / "recipe.yaml"
    recipe.write_text(recipe.read_text("utf-8").replace(str(staged), str(copied)), encoding="utf-8")
    for stage in FOLDERS:
        file = copied / stage / "recipe.yaml"
        file.write_text(file.read_text("utf-8").replace(str(staged), str(copied)), encoding="utf-8")
    shutil.rmtree(copied / "3-full")
    kept = (copied / "2-lora" / "results.json").stat().st_mtime_ns
    done = cli("run", recipe, "--resume")
    assert done.code == 0, done.stderr
    assert "stage 3 of 3: full" in done.stdout
    assert "stage 2" not in done.stdout
    assert (copied / "2-lora" / "results.json").stat().st_mtime_ns == kept
    assert outcome(copied) == outcome(staged)


def stopped_at_once(signals: Any) -> Any:
    signals.received = "SIGINT"
    return signals


def test_an_interrupted_run_says_how_the_whole_goes_on(
    write: Callable[..., Path], cli: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from adaptkit.training.interrupts import StopSignals

    monkeypatch.setattr(StopSignals, "__enter__", stopped_at_once)
    stopped = cli("run", write())
    assert stopped.code == 7
    assert f"adaptkit run {tmp_path / 'run' / 'recipe.yaml'} --resume" in stopped.stderr
    with pytest.raises(CheckpointError, match="has not finished its last stage"):
        adaptkit.load(tmp_path / "run")


def test_a_run_that_ends_before_its_first_step_leaves_no_folder(
    tiny_bert: Path, tiny_data: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bert, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    made = values(broken, tiny_data, tmp_path / "run", PROBE_LORA_FULL)
    with pytest.raises(AdaptkitError):
        adaptkit.run(parse_recipe(made, resolver=load_registry()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("first", ["qlora", "prefix-tuning", "peft:ia3"])
def test_validate_refuses_what_no_stage_can_follow(first: str, write: Callable[..., Path], cli: CommandLine) -> None:
    mergeable = load_registry().strategy(first).capabilities.mergeable
    said = cli("validate", write([{"strategy": first, "model": {"precision": None}}, {"strategy": "full"}]))
    assert (said.code == 0) == mergeable
    if not mergeable:
        assert f"no stage can follow '{first}'" in said.stderr
        assert "stages.0.strategy" in said.stderr
        assert "full, last-layers, linear-probe, lora" in said.stderr


def test_validate_checks_every_stage_and_writes_nothing(
    write: Callable[..., Path], cli: CommandLine, tmp_path: Path
) -> None:
    assert cli("validate", write()).code == 0
    stages = [*PROBE_LORA_FULL[:2], {"strategy": "full", "training": {"packing": True}}]
    said = cli("validate", write(stages))
    assert said.code == 2
    assert "stages.2: training.packing" in said.stderr
    resolved = yaml.safe_load(cli("validate", write(), "--resolved").stdout)
    assert [stage["training"]["learning_rate"] for stage in resolved["stages"]] == [1e-2, 1e-3, 1e-4]
    assert [stage["training"]["epochs"] for stage in resolved["stages"]] == [1, 2, 2]
    assert not (tmp_path / "run").exists()


def test_a_head_over_half_a_model_has_no_next_stage(write: Callable[..., Path], cli: CommandLine) -> None:
    model = {"name": "t5", "init": "random", "tokenizer": {"vocab_size": 100}}
    said = cli("validate", write(model=model))
    assert said.code == 2
    assert "the encoder alone of an encoder-decoder" in said.stderr


def test_random_weights_are_drawn_by_the_first_stage_alone(
    tiny_bert: Path, tiny_data: dict[str, str], tmp_path: Path
) -> None:
    made = values(tiny_bert, tiny_data, tmp_path / "run", [{"strategy": "full"}, {"strategy": "lora"}])
    made["model"] = {"name": str(tiny_bert), "init": "random"}
    recipe = parse_recipe(made, resolver=load_registry())
    assert isinstance(recipe, StagedRecipe)
    assert [stage.model.init for stage in chained(recipe)] == ["random", "pretrained"]
    assert [stage.model.head for stage in chained(recipe)] == ["new", "keep"]


def test_a_language_model_goes_through_stages_too(tiny_data: dict[str, str], tmp_path: Path) -> None:
    made = values(Path("gpt2"), tiny_data, tmp_path / "run", [{"strategy": "full"}, {"strategy": "lora"}])
    config = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    made["model"] = {"name": "gpt2", "init": "random", "config": config, "tokenizer": {"vocab_size": 300}}
    made["task"] = "causal-lm"
    run = adaptkit.run(parse_recipe(made, resolver=load_registry()))
    before = adaptkit.load(tmp_path / "run" / "1-full").evaluate()
    assert run.unadapted().evaluate() == pytest.approx(before, abs=1e-6)


# -- a head that is kept by any run ------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["native", "mean"])
def test_a_kept_head_has_the_bits_of_the_run_before(
    pooling: str, tiny_bert: Path, tiny_data: dict[str, str], tmp_path: Path
) -> None:
    task = {"name": "text-classification", "pooling": pooling}
    first = adaptkit.run(recipe_on(tiny_bert, tiny_data, tmp_path / "a", head="new", strategy="full", task=task))
    base = adaptkit.run(recipe_on(first.directory, tiny_data, tmp_path / "b", task=task)).unadapted()
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(base.model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"model": {"name": "BERT", "head": "keep"}}, "is no run"),
        ({"task": {"name": "text-classification", "labels": ["good", "bad"]}}, "its labels are"),
        ({"task": {"name": "text-classification", "kind": "multi"}}, "its kind are|list"),
        ({"task": "masked-lm"}, "it was trained for text-classification"),
    ],
)
def test_a_head_of_another_meaning_is_refused(
    change: dict[str, Any], found: str, staged: Path, tiny_bert: Path, tiny_data: dict[str, str], tmp_path: Path
) -> None:
    if change.get("model", {}).get("name") == "BERT":
        change = {"model": {"name": str(tiny_bert), "head": "keep"}}
    with pytest.raises(AdaptkitError, match=found):
        adaptkit.run(recipe_on(staged / "2-lora", tiny_data, tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_a_head_that_pools_otherwise_is_refused(staged: Path, tiny_data: dict[str, str], tmp_path: Path) -> None:
    task = {"name": "text-classification", "pooling": "cls"}
    with pytest.raises(ModelError, match=r"BertForSequenceClassification.*PooledClassifier"):
        adaptkit.run(recipe_on(staged / "2-lora", tiny_data, tmp_path / "run", task=task))


def _drop(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop("classifier.bias")


def _add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["bert.embeddings.word_embeddings.weight"] = torch.zeros(2)


def _reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["classifier.weight"] = torch.zeros(3, 64)


def _retype(tensors: dict[str, torch.Tensor]) -> None:
    tensors["classifier.weight"] = tensors["classifier.weight"].to(torch.int32)


def _break(tensors: dict[str, torch.Tensor]) -> None:
    tensors["classifier.bias"][0] = torch.nan


@pytest.mark.parametrize("damage", [_drop, _add, _reshape, _retype, _break])
def test_a_head_of_other_tensors_is_refused(
    damage: Callable[[dict[str, torch.Tensor]], None], staged: Path, tiny_data: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "lora"
    shutil.copytree(staged / "2-lora", run)
    file = plain_model(run) / "head.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file, metadata={"head": "BertForSequenceClassification"})
    with pytest.raises(CheckpointError, match="the head does not belong to this model"):
        adaptkit.run(recipe_on(run, tiny_data, tmp_path / "run"))


def test_a_damaged_head_file_is_refused(staged: Path, tiny_data: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "lora"
    shutil.copytree(staged / "2-lora", run)
    file = plain_model(run) / "head.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="the head is damaged"):
        adaptkit.run(recipe_on(run, tiny_data, tmp_path / "run"))
    file.unlink()
    with pytest.raises(ModelError, match="the run has no head to keep"):
        adaptkit.run(recipe_on(run, tiny_data, tmp_path / "run"))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"stages": []}', '{"stages": ["../x"]}', '{"stages": [".."]}', '{"stages": [5]}']
)
def test_a_list_of_stages_leads_nowhere_else(text: str, tmp_path: Path) -> None:
    (tmp_path / "stages.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="the list of the stages is damaged"):
        adaptkit.load(tmp_path)


def test_another_recipe_does_not_go_on_with_the_stages(staged: Path) -> None:
    with pytest.raises(RecipeError, match="not the one that the run began with"):
        adaptkit.run(str(staged / "recipe.yaml"), ["stages.1.strategy.r=8"], resume=True)
