"""A run whose evaluation and test rows are shares of a mixture is measured on those rows, then and later."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from in_process import CommandLine

import adaptkit
from adaptkit import runner
from adaptkit.artifact.run import Run
from adaptkit.data.splits import load_splits
from adaptkit.errors import CheckpointError
from adaptkit.recipe import Recipe
from adaptkit.registry import load_registry

pytestmark = pytest.mark.usefixtures("one_thread")
MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def mixture(tiny_data: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    """A data section of two sources, one twice, from which shares are taken; the second one may be changed."""
    extra = tmp_path / "extra.jsonl"
    extra.write_text(Path(tiny_data["evaluation"]).read_text(encoding="utf-8"), encoding="utf-8")
    sources = [tiny_data["train"], {"source": str(extra), "weight": 2}]
    return {"train": sources, "evaluation": 0.3, "test": 0.2}


def held_out_file(run: Run, split: str, folder: Path) -> str:
    """Writes the rows of a split to a file of their own."""
    splits = load_splits(run.recipe.data, run.task, load_registry().format_classes())
    path = folder / f"{split}-rows.jsonl"
    path.write_text("".join(json.dumps(dict(row.values)) + "\n" for row in getattr(splits, split)), encoding="utf-8")
    return str(path)


def test_a_run_is_measured_again_on_the_rows_that_it_kept(
    recipe: MakeRecipe, mixture: dict[str, Any], tmp_path: Path, cli: CommandLine
) -> None:
    run = runner.run(recipe("linear-probe", data=mixture, max_steps=3))
    assert run.evaluate() == run.evaluate(held_out_file(run, "test", tmp_path))
    loss = run.evaluate(held_out_file(run, "evaluation", tmp_path))["loss"]
    assert loss == pytest.approx(run.metrics["eval/loss"], rel=1e-5)
    outcome = cli("evaluate", run.directory)
    assert outcome.stdout.startswith(f"20 % of {run.recipe.data.named('train')}: loss ")


def test_the_artifact_knows_every_source_by_its_content(recipe: MakeRecipe, mixture: dict[str, Any]) -> None:
    run = runner.run(recipe("linear-probe", data=mixture, max_steps=1))
    record = json.loads((run.directory / "adapter" / "adaptkit.json").read_text(encoding="utf-8"))
    assert set(record["data"]) == {mixture["train"][0], mixture["train"][1]["source"]}
    assert adaptkit.load(run.directory).recipe.data == run.recipe.data


def test_no_source_of_a_mixture_may_change_before_a_resume(
    recipe: MakeRecipe, mixture: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe("linear-probe", data=mixture, epochs=1)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("adaptkit.session.Session._keep", fail)
        with pytest.raises(KeyboardInterrupt):
            runner.run(chosen)
    extra = Path(mixture["train"][1]["source"])
    extra.write_text(extra.read_text(encoding="utf-8").replace("film", "plot"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"extra\.jsonl' has changed since the run began"):
        runner.run(chosen, resume=True)
