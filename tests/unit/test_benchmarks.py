from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny

from adaptkit.errors import DataError
from benchmarks import __main__ as command
from benchmarks.report import machine, markdown_table, replace_block

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.contenders import Workload

ROOT = Path(__file__).parents[2]
README = "top\n<!-- speed:begin -->\nold\n<!-- speed:end -->\nbottom\n"
ROWS, BATCH = 32, 16


@pytest.fixture
def work(
    tiny_bert_without_dropout: Path, tiny_data: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workload]:
    """Two optimizer steps of 16 rows on a tiny model; nothing is drawn during training."""
    import torch

    from benchmarks.contenders import make_workload

    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    overrides = {
        "model": str(tiny_bert_without_dropout),
        "data": {**tiny_data, "test": None},
        "strategy.r": 4,
        "training.effective_batch": BATCH,
        "training.micro_batch_tokens": 200,
    }
    yield make_workload(ROWS, overrides)
    torch.set_num_threads(threads)


def adaptkits_state(work: Workload) -> dict[str, Tensor]:
    state: dict[str, Tensor] = tiny.copied(work.job.strategy.state(work.job.model))
    return state


def pefts_state(model: Any) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = tiny.copied(get_peft_model_state_dict(model))
    return state


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# -- what is compared is equal -------------------------------------------------------------------------


def test_peft_begins_with_the_weights_of_adaptkit(work: Workload) -> None:
    from benchmarks.contenders import peft_model

    assert largest_difference(adaptkits_state(work), pefts_state(peft_model(work))) == 0


def test_the_bare_loop_trains_the_weights_that_adaptkit_trains(work: Workload) -> None:
    from benchmarks.contenders import Adaptkit, BareLoop

    bare, before = BareLoop(work), adaptkits_state(work)
    Adaptkit(work).train(range(2))
    bare.train(range(2))
    assert largest_difference(adaptkits_state(work), before) > 1e-4
    assert largest_difference(adaptkits_state(work), pefts_state(bare.model)) < 1e-6


@pytest.mark.parametrize("rows", [8, BATCH])
def test_a_step_of_the_trainer_is_a_step_of_adaptkit(work: Workload, rows: int) -> None:
    from benchmarks.contenders import Adaptkit, HFTrainer

    trainer = HFTrainer(work, rows)
    Adaptkit(work).train(range(1))
    trainer.train(range(1))
    assert largest_difference(adaptkits_state(work), pefts_state(trainer.model)) < 1e-5


def test_the_floor_counts_what_torch_counts_on_a_row_without_padding(work: Workload) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.contenders import peft_model
    from benchmarks.floor import training_flops

    model: Any = peft_model(work)
    model.base_model.model.set_attn_implementation("eager")  # torch does not count its fused attention on the CPU
    feature = max(work.features, key=lambda row: len(row["input_ids"]))
    batch = work.job.task.collate([feature], work.tokenizer)
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    counted = counter.get_total_flops()
    floor = training_flops(work.job.model.config, 4, [len(feature["input_ids"])])
    assert 0.95 * counted < floor <= counted


# -- the harness ---------------------------------------------------------------------------------------


def test_every_contender_trains_every_round(work: Workload) -> None:
    from benchmarks.speed import measure, table, verdict

    measurement = measure(work, rounds=2)
    assert (measurement.rows, measurement.steps) == (ROWS, 2)
    assert measurement.tokens == sum(len(row["input_ids"]) for row in work.features)
    assert len(measurement.contenders) == 4
    for one in measurement.contenders:
        assert len(one.ratios) == len(one.tokens_per_second) == 2
        assert all(speed > 0 for speed in one.tokens_per_second)
        assert 0 <= one.padding < 1
        assert one.name in table(measurement)
    assert measurement.contenders[0].ratios == [1, 1]
    assert verdict(measurement).count("goal") == 2


def test_the_command_writes_the_table_and_the_figures(
    work: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import speed

    monkeypatch.setattr(speed, "make_workload", lambda rows, overrides: work)
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text(README, encoding="utf-8")
    speed.main(["--rows", "64", "--rounds", "1", "--write"])
    readme = Path("README.md").read_text(encoding="utf-8")
    figures = json.loads(speed.RESULTS.read_text(encoding="utf-8"))
    assert "| bare PyTorch loop " in readme
    assert "| bare PyTorch loop " in capsys.readouterr().out
    assert figures["command"] in readme
    assert [one["name"] for one in figures["contenders"]][:2] == ["adaptkit", "bare PyTorch loop"]


@pytest.mark.parametrize("rounds", ["0", "3"])
def test_more_rounds_than_steps_are_refused(rounds: str) -> None:
    from benchmarks import speed

    with pytest.raises(SystemExit, match="2"):
        speed.main(["--rows", "64", "--rounds", rounds])


def test_an_unknown_benchmark_is_refused_with_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["sped"])
    assert "python -m benchmarks speed" in capsys.readouterr().err


# -- the report ----------------------------------------------------------------------------------------


def test_only_the_block_is_replaced_however_often(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README, encoding="utf-8")
    for body in ("first", "| new |\n"):
        replace_block("speed", body, readme)
    assert readme.read_text(encoding="utf-8") == README.replace("old", body.strip())


@pytest.mark.parametrize(
    "text",
    [
        "no markers",
        "<!-- speed:begin --> never ends",
        "<!-- speed:end --> before <!-- speed:begin -->",
        README + README,
        README.replace("speed", "other"),
    ],
)
def test_a_file_without_one_place_for_the_block_is_left_alone(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="speed"):
        replace_block("speed", "new", readme)
    assert readme.read_text(encoding="utf-8") == text


def test_a_table_has_columns_of_one_width() -> None:
    lines = markdown_table(["name", "speed"], [["a", "1"], ["longer", "100,000"]]).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert lines[1].endswith("-: |")


def test_the_machine_is_named_by_its_parts_alone() -> None:
    assert "core" in machine()
    assert "torch" in machine()
    assert "/" not in machine().replace("GNU/Linux", "")
