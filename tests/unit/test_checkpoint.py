from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from adaptkit.errors import CheckpointError
from adaptkit.training import checkpoint
from adaptkit.training.checkpoint import (
    latest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    remove_leftovers,
    write_checkpoint,
)


def parts(value: float = 1.0) -> dict[str, object]:
    return {"model": {"weight": torch.full((4, 3), value)}, "loop": {"step": 3, "best": value}}


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    file.write_bytes(content)


def test_what_was_written_is_read(tmp_path):
    path = write_checkpoint(tmp_path / "run" / "checkpoints", 100, parts(2.5))
    assert path == tmp_path / "run" / "checkpoints" / "step-00000100"
    read = read_checkpoint(path)
    assert read["loop"] == {"step": 3, "best": 2.5}
    assert torch.equal(read["model"]["weight"], torch.full((4, 3), 2.5))


def test_a_checkpoint_holds_json_and_safetensors_only(tmp_path):
    path = write_checkpoint(tmp_path, 1, parts())
    assert sorted(f.name for f in path.iterdir()) == ["loop.json", "manifest.json", "model.json", "model.safetensors"]
    assert list(tmp_path.iterdir()) == [path]


def test_the_latest_checkpoint_is_that_of_the_highest_step(tmp_path):
    assert latest_checkpoint(tmp_path / "nothing") is None
    for step in (9, 100_000_000, 20):
        write_checkpoint(tmp_path, step, parts())
    assert latest_checkpoint(tmp_path) == tmp_path / "step-100000000"


def test_writing_a_step_again_replaces_it(tmp_path):
    write_checkpoint(tmp_path, 5, {**parts(1.0), "extra": 1})
    path = write_checkpoint(tmp_path, 5, parts(2.0))
    assert read_checkpoint(path)["loop"]["best"] == 2.0
    assert list(tmp_path.iterdir()) == [path]


def test_writing_a_step_again_replaces_a_damaged_one(tmp_path):
    path = write_checkpoint(tmp_path, 5, parts(1.0))
    (path / "manifest.json").unlink()
    assert read_checkpoint(write_checkpoint(tmp_path, 5, parts(2.0)))["loop"]["best"] == 2.0
    assert list(tmp_path.iterdir()) == [path]


def test_every_flipped_bit_of_a_sample_is_detected(tmp_path):
    path = write_checkpoint(tmp_path, 7, parts())
    for file in sorted(path.iterdir()):
        bits = file.stat().st_size * 8
        for bit in range(0, bits, 1 if file.name == "manifest.json" else 29):
            flip(file, bit)
            with pytest.raises(CheckpointError, match=None if file.name == "manifest.json" else file.name):
                read_checkpoint(path)
            flip(file, bit)
    read_checkpoint(path)


def test_damage_names_every_file_and_the_newest_earlier_checkpoint_that_is_whole(tmp_path):
    whole, damaged, path, newer = (write_checkpoint(tmp_path, step, parts()) for step in (1, 2, 3, 4))
    flip(damaged / "model.safetensors", 800)
    flip(path / "model.safetensors", 800)
    (path / "loop.json").unlink()
    (path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert sorted(problem.found.split()[0] for problem in error.value.problems) == [
        "loop.json",
        "model.safetensors",
        "notes.txt",
    ]
    assert {problem.fix for problem in error.value.problems} == {f"resume from {whole}"}
    assert latest_checkpoint(tmp_path) == newer


def test_a_checkpoint_without_a_manifest_does_not_exist(tmp_path):
    whole, path = write_checkpoint(tmp_path, 1, parts()), write_checkpoint(tmp_path, 2, parts())
    (path / "manifest.json").unlink()
    assert latest_checkpoint(tmp_path) == whole
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing") as error:
        read_checkpoint(path)
    assert str(whole) in str(error.value)


@pytest.mark.parametrize("name", ["step-00000009", "elsewhere"])
def test_a_path_without_a_checkpoint_says_so(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"no checkpoint {name}"):
        read_checkpoint(tmp_path / name)


def test_a_damaged_latest_checkpoint_is_reported_and_not_passed_over(tmp_path):
    whole, path = write_checkpoint(tmp_path, 1, parts()), write_checkpoint(tmp_path, 2, parts())
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    latest = latest_checkpoint(tmp_path)
    assert latest == path
    with pytest.raises(CheckpointError, match=r"model\.safetensors has \d+ bytes") as error:
        read_checkpoint(latest)
    assert str(whole) in str(error.value)


def test_a_renamed_checkpoint_is_of_no_step(tmp_path):
    write_checkpoint(tmp_path, 1, parts()).rename(tmp_path / "step-00000002")
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    "name", ["../secret.json", "/etc/passwd", "a/b.json", "..", "model.pt", "manifest.json", "model.json\n", "C:x.json"]
)
def test_a_manifest_cannot_name_a_file_outside_the_checkpoint(tmp_path, name):
    path = write_checkpoint(tmp_path, 1, parts())
    (tmp_path / "secret.json").write_text("1")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = manifest["files"]["loop.json"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="no checkpoint has"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "manifest", [[], 3, {}, {"files": []}, {"files": {"a.json": 1}}, {"files": {"a.json": {"sha256": []}}}]
)
def test_a_manifest_of_another_form_is_an_error(tmp_path, manifest):
    path = write_checkpoint(tmp_path, 1, parts())
    if isinstance(manifest, dict) and manifest:
        manifest = {**json.loads((path / "manifest.json").read_text()), **manifest}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"not valid|not in the manifest"):
        read_checkpoint(path)


def test_symlinks_are_refused_even_to_the_right_bytes(tmp_path):
    path = write_checkpoint(tmp_path / "run", 1, parts())
    for name in ("model.json", "manifest.json"):
        shutil.copy(path / name, tmp_path / name)
        (path / name).unlink()
        (path / name).symlink_to(tmp_path / name)
        with pytest.raises(CheckpointError, match=f"{name}.* regular file"):
            read_checkpoint(path)
        (path / name).unlink()
        shutil.copy(tmp_path / name, path / name)
    read_checkpoint(path)
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["manifest", "../model", "Model", "", "a.b", "a/b"])
def test_a_part_needs_a_plain_name(tmp_path, name):
    with pytest.raises(CheckpointError, match="cannot name a part"):
        write_checkpoint(tmp_path, 1, {name: 1})
    assert list(tmp_path.iterdir()) == []


def test_an_unsavable_part_leaves_nothing_behind(tmp_path):
    before = write_checkpoint(tmp_path, 1, parts())
    with pytest.raises(CheckpointError, match="object"):
        write_checkpoint(tmp_path, 2, {**parts(), "plugin": {"x": object()}})
    assert list(tmp_path.iterdir()) == [before]


def test_a_full_disk_is_a_checkpoint_error_that_names_what_is_left(tmp_path, monkeypatch):
    before = write_checkpoint(tmp_path, 1, parts())

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left") as error:
        write_checkpoint(tmp_path, 2, parts())
    assert f"resume from {before}" in str(error.value)
    assert list(tmp_path.iterdir()) == [before]


def test_pruning_keeps_the_newest_and_the_protected(tmp_path):
    paths = [write_checkpoint(tmp_path, step, parts()) for step in range(1, 6)]
    prune_checkpoints(tmp_path, keep=2, protect={paths[1]})
    assert sorted(tmp_path.iterdir()) == [paths[1], paths[3], paths[4]]


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path):
    paths = [write_checkpoint(tmp_path, step, parts()) for step in range(1, 4)]
    (paths[2] / "manifest.json").unlink()
    prune_checkpoints(tmp_path, keep=1)
    assert latest_checkpoint(tmp_path) == paths[1]
    assert not paths[0].exists()


def test_leftovers_are_ignored_and_removed(tmp_path):
    path = write_checkpoint(tmp_path, 1, parts())
    shutil.copytree(path, tmp_path / ".tmp-step-00000002-abcd")
    shutil.copytree(path, tmp_path / "step-00000001.old")
    assert latest_checkpoint(tmp_path) == path
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_that_was_never_replaced_counts_and_is_put_back(tmp_path):
    path = write_checkpoint(tmp_path, 1, parts(4.0))
    old = path.rename(tmp_path / "step-00000001.old")
    assert latest_checkpoint(tmp_path) == old
    assert read_checkpoint(old)["loop"]["best"] == 4.0
    remove_leftovers(tmp_path)
    assert latest_checkpoint(tmp_path) == path
