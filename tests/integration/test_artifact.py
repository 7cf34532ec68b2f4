"""What a run leaves behind is whole, proves itself, and can be read without the run; PEFT's without adaptkit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from forked_runs import finish, fork
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

import adaptkit
from adaptkit.artifact.run import Run
from adaptkit.errors import CheckpointError, ModelError, RecipeError
from adaptkit.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")
MakeRecipe = Callable[..., Recipe]
EVERY_STRATEGY = pytest.mark.parametrize("strategy", tiny.STRATEGIES)
PEFT_STRATEGY = pytest.mark.parametrize("strategy", ["lora", "qlora"])
TEXTS = ["the film was great", "a dull plot", "the scene was so very weak and the actor was not good", "quite"]
CHECKPOINT = {"manifest.json", "model.json", "model.safetensors", "optimizer.json", "optimizer.safetensors"} | {
    "position.json", "rng.json", "rng.safetensors", "scheduler.json", "session.json", "strategy.json"
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny_bert: Path, tiny_data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Returns the finished run of a strategy and a pooling, trained when it is first asked for."""
    finished: dict[tuple[str, str], Path] = {}

    def run(strategy: str, pooling: str = "native") -> Run:
        if (strategy, pooling) not in finished:
            folder = tmp_path_factory.mktemp("runs") / f"{strategy}-{pooling}"
            recipe = tiny.make_recipe(tiny_bert, tiny_data, folder, strategy, {"pooling": pooling}, max_steps=4)
            finished[strategy, pooling] = adaptkit.run(recipe).directory
        return adaptkit.load(finished[strategy, pooling])

    return run


def inputs(run: Run) -> dict[str, Tensor]:
    return dict(run.tokenizer(TEXTS, padding=True, return_token_type_ids=False, return_tensors="pt"))


def logits(run: Run, model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(**inputs(run)).logits
    return result


def write_what_runs_say(folders: list[Path], file: Path) -> None:
    loaded = [adaptkit.load(folder) for folder in folders]
    file.write_text(json.dumps([[run.predict(TEXTS), run.evaluate()] for run in loaded]), encoding="utf-8")


def test_a_fresh_process_gets_the_same_bits(runs: Callable[..., Run], tmp_path: Path) -> None:
    here = [runs(strategy) for strategy in tiny.STRATEGIES]
    file = tmp_path / "said.json"
    assert finish(fork(write_what_runs_say, [run.directory for run in here], file)) == 0
    for run, (predictions, figures) in zip(here, json.loads(file.read_text(encoding="utf-8")), strict=True):
        assert predictions == run.predict(TEXTS)
        trained = {name.removeprefix("eval/"): value for name, value in run.metrics.items()}
        assert figures == trained, "the artifact measures what the model measured when it was trained"


@EVERY_STRATEGY
def test_exactly_the_expected_files_are_left_and_none_can_execute(strategy: str, runs: Callable[..., Run]) -> None:
    folder = runs(strategy).directory
    kept = runs(strategy).results["kept_step"]
    adapter = {"adapter_model.safetensors", "adaptkit.json"}
    if "lora" in strategy:
        adapter.add("adapter_config.json")
    expected = {"README.md", "metrics.jsonl", "recipe.yaml", "results.json"}
    expected |= {f"adapter/{name}" for name in adapter}
    expected |= {f"checkpoints/step-{step:08d}/{name}" for step in {4, kept} for name in CHECKPOINT}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {str(path.relative_to(folder)) for path in files} == expected
    for path in files:
        if path.suffix == ".safetensors":
            load_file(path)
        else:
            path.read_text(encoding="utf-8")


@PEFT_STRATEGY
@pytest.mark.parametrize("pooling", ["native", "mean"])
def test_peft_loads_the_adapter_onto_the_base(strategy: str, pooling: str, runs: Callable[..., Run]) -> None:
    run = runs(strategy, pooling)
    loaded = PeftModel.from_pretrained(run.base, run.directory / "adapter")
    assert torch.equal(logits(run, loaded), logits(run, run.model))
    assert not torch.equal(logits(run, run.base), logits(run, run.model))


def test_a_native_head_is_read_without_any_object_of_adaptkit(runs: Callable[..., Run], tiny_bert: Path) -> None:
    run = runs("lora")
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    loaded = PeftModel.from_pretrained(plain, run.directory / "adapter")
    assert torch.equal(logits(run, loaded), logits(run, run.model))


@pytest.mark.parametrize("pooling", ["native", "mean"])
def test_merged_is_unmerged_without_any_layer_of_peft(pooling: str, runs: Callable[..., Run]) -> None:
    run = runs("lora", pooling)
    before = logits(run, run.model)
    merged = runs_strategy(run).merge(run.model)
    assert torch.allclose(logits(run, merged), before, atol=1e-5)
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert dict(merged.named_parameters()).keys() == dict(run.base.named_parameters()).keys()


@pytest.mark.parametrize("strategy", ["lora", "qlora", "prefix-tuning"])
def test_switched_off_the_model_is_its_base_with_the_trained_head(strategy: str, runs: Callable[..., Run]) -> None:
    run = runs(strategy)
    base, before = run.base, logits(run, run.model)
    base.classifier.load_state_dict(run.model.classifier.state_dict())
    with runs_strategy(run).disabled(run.model):
        assert torch.equal(logits(run, run.model), logits(run, base))
    assert torch.equal(logits(run, run.model), before)
    assert not torch.equal(logits(run, base), before)


def runs_strategy(run: Run) -> Any:
    return run._registry.strategy(run.recipe.strategy.name)(run.recipe.strategy)


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@EVERY_STRATEGY
def test_a_changed_byte_in_the_adapter_is_noticed(strategy: str, runs: Callable[..., Run], tmp_path: Path) -> None:
    copy = shutil.copytree(runs(strategy).directory, tmp_path / "copy")
    adaptkit.load(copy).predict(TEXTS)
    flip_last_byte(copy / "adapter" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="changed") as error:
        adaptkit.load(copy).predict(TEXTS)
    assert "adapter_model.safetensors" in str(error.value)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_byte_in_the_base_is_noticed(file: str, recipe: MakeRecipe, tiny_bert: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_bert, tmp_path / "base")
    run = adaptkit.run(recipe("lora", model=base, max_steps=1))
    if file.endswith(".json"):
        (base / file).write_text((base / file).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    else:
        flip_last_byte(base / file)
    with pytest.raises(CheckpointError, match="is not the one that was adapted"):
        adaptkit.load(run.directory).predict(TEXTS)


def test_an_adapter_of_other_tensors_is_refused_with_their_names(runs: Callable[..., Run], tmp_path: Path) -> None:
    copy = shutil.copytree(runs("lora").directory, tmp_path / "copy")
    shutil.copy(runs("prefix-tuning").directory / "adapter" / "adapter_model.safetensors", copy / "adapter")
    with pytest.raises(CheckpointError):
        adaptkit.load(copy).predict(TEXTS)


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_never_overwritten(resume: bool, recipe: MakeRecipe) -> None:
    chosen = recipe("linear-probe", max_steps=2)
    folder = adaptkit.run(chosen).directory
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if resume:
        adaptkit.run(chosen, resume=True)
    else:
        with pytest.raises(RecipeError, match="is not empty"):
            adaptkit.run(chosen)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_new_starts_beside_the_finished_run(recipe: MakeRecipe) -> None:
    chosen = recipe("linear-probe", max_steps=2)
    first, second = adaptkit.run(chosen), adaptkit.run(chosen, new=True)
    assert second.directory == first.directory.with_name("run-2")
    assert second.recipe.output == str(second.directory)


def test_a_base_whose_weights_are_a_pickle_is_refused(recipe: MakeRecipe, tiny_bert: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_bert, tmp_path / "base")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        adaptkit.run(recipe("lora", model=base))
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_half_written_run_cannot_be_loaded_and_says_how_to_finish_it(recipe: MakeRecipe, tmp_path: Path) -> None:
    run = adaptkit.run(recipe("linear-probe", max_steps=2))
    shutil.rmtree(run.directory / "adapter")
    with pytest.raises(CheckpointError, match="--resume"):
        adaptkit.load(run.directory)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"recipe": None}, "the record lacks recipe"),
        ({"task_state": [], "tensors": 3}, "the record lacks task_state, tensors"),
        ({"base": "a"}, r"the record lacks base\.fingerprint, base\.precision"),
        ({"task_state": {}}, "what the run has learned of its rows is damaged: KeyError"),
        ({"task_state": {"kind": "single", "labels": 3, "counts": [], "paired": False}}, "is damaged: TypeError"),
    ],
)
def test_a_damaged_record_is_refused_with_its_file(
    change: dict[str, Any], found: str, runs: Callable[..., Run], tmp_path: Path
) -> None:
    copied = shutil.copytree(runs("lora").directory, tmp_path / "run")
    file = copied / "adapter" / "adaptkit.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=found) as error:
        adaptkit.load(copied)
    assert error.value.problems[0].where == str(file)
