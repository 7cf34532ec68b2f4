"""A run's checkpoints: written aside, sealed by a manifest, renamed into place, verified before they are used.

A checkpoint is a folder ``step-00000100`` with a ``manifest.json`` that holds the sha256 and the size of
every other file. Without a valid manifest it does not exist. What a crash leaves behind is

    .tmp-…              a checkpoint that was being written or removed; never read
    step-00000100.old   the checkpoint that one of the same step was about to replace; read while that is missing
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Final

from adaptkit.data.digest import file_sha256
from adaptkit.errors import CheckpointError, Problem
from adaptkit.training.serialization import load_nested, save_nested

MANIFEST: Final = "manifest.json"
FORMAT: Final = {"format": "adaptkit-checkpoint", "version": 1}
STAGED: Final = ".tmp-"
REPLACED: Final = ".old"
_PART = re.compile(r"(?!manifest$)[a-z][a-z0-9_-]*")
_FILE = re.compile(r"(?!manifest\.)[a-z][a-z0-9_-]*\.(json|safetensors)")
_FOLDER = re.compile(r"step-(\d{8,})(\.old)?", re.ASCII)


def write_checkpoint(folder: Path, step: int, parts: Mapping[str, Any]) -> Path:
    """Writes a checkpoint; killed at any moment, it leaves the earlier ones as they were.

    Args:
        folder: Of all checkpoints of the run; it is made when it is missing.
        step: Optimizer steps done.
        parts: Nests of plain values and tensors by name (lower-case letters, digits, ``_``, ``-``).

    Returns:
        The checkpoint's folder. One of the same step is replaced.

    Raises:
        CheckpointError: A part cannot be saved, or the folder cannot be written.
    """
    target = folder / f"step-{step:08d}"
    staging = _aside(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        for name, value in parts.items():
            if not _PART.fullmatch(name):
                raise CheckpointError(f"{name!r} cannot name a part of a checkpoint", allowed=_PART.pattern)
            save_nested(staging / name, value)
        _seal(staging, step)
        _put_in_place(staging, target)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint of step {step} cannot be written: {error}",
            where=str(folder),
            fix=f"free space or fix the folder, then resume; {_newest_whole(folder)}",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint after every byte of it has been verified.

    Returns:
        The parts by name; tensors on the CPU.

    Raises:
        CheckpointError: The manifest or a file is missing, changed or too many; one problem a file. The
            fix names the newest earlier checkpoint that is whole.
    """
    problems = _damage(path)
    if problems:
        fix = _newest_whole(path.parent, before=path)
        raise CheckpointError([Problem(found, where=where, fix=fix) for where, found in problems])
    names = sorted(file.stem for file in path.glob("*.json") if file.name != MANIFEST)
    return {name: load_nested(path / name) for name in names}


def latest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest checkpoint with a valid manifest, or None.

    No crash takes a file from such a checkpoint. One that was damaged later is returned all the same, so
    that `read_checkpoint` says so: going on from an earlier one is for a person to decide.
    """
    return next(filter(_is_sealed, _checkpoints(folder)), None)


def prune_checkpoints(folder: Path, keep: int, protect: Container[Path] = ()) -> None:
    """Removes all but the newest ``keep`` valid checkpoints.

    Args:
        folder: Of all checkpoints of the run.
        keep: How many stay.
        protect: Paths that stay anyway (the best checkpoint), spelled as `write_checkpoint` returned them.
    """
    for path in list(filter(_is_sealed, _checkpoints(folder)))[keep:]:
        if path not in protect:
            _remove(path)


def remove_leftovers(folder: Path) -> None:
    """Clears up after a crash: removes half-written checkpoints, puts back one that was never replaced."""
    for path in folder.glob(f"{STAGED}*"):
        shutil.rmtree(path, ignore_errors=True)
    for old in folder.glob(f"step-*{REPLACED}"):
        target = old.with_suffix("")
        if _is_sealed(target):
            _remove(old)
        elif not target.exists() and _is_sealed(old):
            old.rename(target)
            _fsync_folder(folder)


def _aside(path: Path) -> Path:
    return path.with_name(f"{STAGED}{path.name}-{secrets.token_hex(4)}")


def _seal(staging: Path, step: int) -> None:
    """Makes sure that every file is on the disk, then writes the manifest that makes the checkpoint valid."""
    files = {}
    for file in sorted(staging.iterdir()):
        _fsync(file)
        files[file.name] = {"sha256": file_sha256(file), "size": file.stat().st_size}
    manifest = staging / MANIFEST
    manifest.write_text(json.dumps({**FORMAT, "step": step, "files": files}, indent=1) + "\n", encoding="utf-8")
    _fsync(manifest)
    _fsync_folder(staging)


def _put_in_place(staging: Path, target: Path) -> None:
    """Renames a sealed folder to its name. At every moment the old or the new one is there under a valid name."""
    old = target.with_name(target.name + REPLACED)
    if _is_sealed(target):
        _remove(old)
        target.rename(old)
    else:
        _remove(target)
    staging.rename(target)
    _fsync_folder(target.parent)
    _remove(old)


def _remove(path: Path) -> None:
    """Removes a checkpoint; the rename makes it invalid at once, however long the rest takes."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        aside = _aside(path)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _fsync(file: Path) -> None:
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())


def _fsync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder; its renames are journalled.
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _checkpoints(folder: Path) -> list[Path]:
    """Returns every folder with a checkpoint's name, newest first; one that is being replaced after its successor."""
    named = [path for path in folder.glob("step-*") if _FOLDER.fullmatch(path.name)]
    return sorted(named, key=lambda path: (-_step(path), path.name))


def _step(path: Path) -> int:
    return int(path.name.removesuffix(REPLACED).removeprefix("step-"))


def _is_sealed(path: Path) -> bool:
    return not isinstance(_manifest_files(path), str)


def _newest_whole(folder: Path, before: Path | None = None) -> str:
    """Says which checkpoint to go on from: the newest whole one that is not newer than ``before``."""
    newest = _step(before) if before and _FOLDER.fullmatch(before.name) else None
    for path in _checkpoints(folder):
        if (newest is None or _step(path) <= newest) and not _damage(path):
            return f"resume from {path}"
    return "no whole checkpoint is left; start the run again"


def _damage(path: Path) -> list[tuple[str, str]]:
    """Returns what is wrong with a checkpoint, as pairs of a place and a sentence."""
    files = _manifest_files(path)
    if isinstance(files, str):
        return [(str(path), files)]
    found = {entry.name for entry in path.iterdir()} - {MANIFEST}
    problems = [(str(path / name), f"{name} is not in the manifest") for name in sorted(found - files.keys())]
    for name, entry in files.items():
        what = _difference(path / name, entry) if name in found else "is missing"
        if what:
            problems.append((str(path / name), f"{name} {what}"))
    return problems


def _manifest_files(path: Path) -> dict[str, dict[str, Any]] | str:
    """Returns the manifest's files, or a sentence why there are none."""
    if path.is_symlink() or not path.is_dir() or not _FOLDER.fullmatch(path.name):
        return f"there is no checkpoint {path.name}"
    try:
        return _parsed_manifest(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} is missing or not valid: {error}"


def _parsed_manifest(path: Path) -> dict[str, dict[str, Any]]:
    if not stat.S_ISREG((path / MANIFEST).lstat().st_mode):
        raise ValueError("not a regular file")
    manifest = json.loads((path / MANIFEST).read_bytes().decode("utf-8"))
    files: dict[str, dict[str, Any]] = manifest.pop("files")
    expected = {**FORMAT, "step": _step(path)}
    if manifest != expected:
        raise ValueError(f"it says {manifest}, expected {expected}")
    for name, entry in files.items():
        # A name with a separator in it could lead out of the folder.
        if not _FILE.fullmatch(name) or entry.keys() != {"sha256", "size"}:
            raise ValueError(f"an entry {name!r} that no checkpoint has")
    return files


def _difference(file: Path, entry: Mapping[str, Any]) -> str | None:
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_size != entry["size"]:
        return f"has {status.st_size} bytes, the manifest says {entry['size']}"
    return None if file_sha256(file) == entry["sha256"] else "has changed since it was written"
