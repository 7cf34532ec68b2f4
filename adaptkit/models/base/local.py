"""What this disk tells about a base without torch: whether it is there, and which one it is."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from shlex import quote
from typing import Any

from adaptkit.errors import ModelError, did_you_mean
from adaptkit.models.base.family import RUN_RECORD, architectures
from adaptkit.recipe import ModelSpec, TokenizerTraining

# Whatever decides what a base computes: weights, configs, tokenizer, the pooling of a sentence encoder.
BASE_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "1_Pooling/config.json")


def is_run(name: str) -> bool:
    """Returns whether a name is the folder of a finished run."""
    return (Path(name) / RUN_RECORD).is_file()


def is_architecture(spec: ModelSpec) -> bool:
    """Returns whether a base is made from the defaults of an architecture: new weights, and no folder of that name."""
    return spec.init == "random" and spec.name in architectures() and not Path(spec.name).is_dir()


def check_local(spec: ModelSpec) -> None:
    """Raises when a base cannot be had, as far as that is seen without a network.

    A name is meant as a folder when it looks like a path or its parent exists; with ``init: random`` a name
    without a slash is meant as an architecture.

    Raises:
        ModelError: With the nearest name that exists.
    """
    if isinstance(spec.tokenizer, str):
        _check_folder(spec.tokenizer, "model.tokenizer", ("tokenizer.json", "tokenizer_config.json"))
    if is_run(spec.name):
        return
    if is_architecture(spec):
        if spec.tokenizer is None:
            raise ModelError(
                f"{spec.name!r} is an architecture, which has no tokenizer",
                where="model.tokenizer",
                allowed="{vocab_size: 8000} to train one on the training rows, or the folder or hub id of one",
                fix="add to the recipe: model: {name: " + spec.name + ", init: random, tokenizer: {vocab_size: 8000}}",
            )
        return
    if spec.init == "random" and "/" not in spec.name and not Path(spec.name).is_dir():
        raise ModelError(
            f"there is no architecture {spec.name!r}",
            where="model.name",
            allowed="an architecture of transformers for text (bert, gpt2, t5 …), or a model to take the config of",
            fix=did_you_mean(spec.name, architectures()) or "name one of them, or a folder with a config.json",
        )
    _check_folder(spec.name, "model.name", ("config.json",))
    if spec.init == "pretrained":
        _check_no_pickle(Path(spec.name))


def _check_no_pickle(folder: Path) -> None:
    """Raises when the weights in a folder are a pickle, which could run code."""
    if any(folder.glob("*.safetensors")) or not (pickles := sorted(folder.glob("pytorch_model*.bin"))):
        return
    raise ModelError(
        "the weights are a pickle, which could run code and is not read",
        where=str(pickles[0]),
        allowed="weights in *.safetensors",
        fix="fetch the safetensors of the model, or let those who made it save it again: save_pretrained writes them",
    )


def _check_folder(name: str, where: str, files: tuple[str, ...]) -> None:
    """Raises when a folder is not there, or has none of the files."""
    path = Path(name)
    if path.is_dir():
        if not any((path / file).is_file() for file in files):
            raise ModelError(f"the folder holds no {_kind(where)}", where=name, **_instead(path, files))
        return
    looks_local = path.is_absolute() or name.startswith((".", "~")) or path.parent.is_dir() or name.count("/") > 1
    if "/" in name and looks_local:
        siblings = [str(path.parent / entry) for entry in os.listdir(path.parent)] if path.parent.is_dir() else []
        raise ModelError(
            f"there is no folder {name!r}",
            where=where,
            allowed="a local folder, the folder of a finished run, or the id of a model on the Hugging Face hub",
            fix=did_you_mean(name, siblings)
            or "`make assets` fetches the models of the recipes into assets/; "
            "a run must be finished before another one can start from it",
        )


def _kind(where: str) -> str:
    return where.rpartition(".")[2].replace("name", "model")


def _instead(path: Path, files: tuple[str, ...]) -> dict[str, str]:
    """Returns what is allowed and what to do where a folder is of another kind."""
    if (path / RUN_RECORD.name).is_file():
        return {"allowed": "the folder of the whole run", "fix": f"name {str(path.parent)!r}"}
    if (path / "tokenizer").is_dir() and "tokenizer.json" in files:
        return {"allowed": "the folder of a tokenizer", "fix": f"name {str(path / 'tokenizer')!r}"}
    if (path / "recipe.yaml").is_file():
        return {
            "allowed": "a model, or a run that is finished",
            "fix": f"this run is not finished: adaptkit run {quote(str(path / 'recipe.yaml'))} --resume",
        }
    return {"allowed": f"a folder with {' or '.join(files)}", "fix": "check the path"}


def base_fingerprint(spec: ModelSpec, config: Any, tokenizer_folder: Path | None = None) -> str:
    """Returns what identifies a base, before anything is trained.

    Of a folder it is the sha256 of its files, of a hub model the commit. What the recipe changes (new weights,
    config values, another tokenizer, new tokens) makes it the fingerprint of the two together. New weights are
    a function of that and of ``training.seed``, which stands in the recipe beside it.

    Args:
        spec: The recipe's section.
        config: Of transformers; it knows the commit of a hub model.
        tokenizer_folder: Where the tokenizer is that was trained for the run, if one was.
    """
    base = f"architecture:{spec.name}" if is_architecture(spec) else _identity(spec, config)
    changes = spec.model_dump(mode="json", include={"init", "config", "new_tokens"}, exclude_defaults=True)
    if isinstance(spec.tokenizer, TokenizerTraining):
        changes["tokenizer"] = _folder_digest(tokenizer_folder) if tokenizer_folder else spec.tokenizer.model_dump()
    elif spec.tokenizer is not None:
        folder = Path(spec.tokenizer)
        changes["tokenizer"] = _folder_digest(folder) if folder.is_dir() else spec.tokenizer
    if not changes:
        return base
    text = json.dumps([base, changes], sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _identity(spec: ModelSpec, config: Any) -> str:
    folder = Path(spec.name)
    if folder.is_dir():
        return f"sha256:{_folder_digest(folder)}"
    return f"commit:{getattr(config, '_commit_hash', None) or spec.revision or 'unknown'}"


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for pattern in BASE_FILES for path in folder.glob(pattern)):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
