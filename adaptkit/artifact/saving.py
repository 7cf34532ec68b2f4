"""Saving what was trained, with all that is needed to build it again and to know where it came from."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.artifact.folder import write_json
from adaptkit.data.digest import file_sha256
from adaptkit.recipe import Recipe

if TYPE_CHECKING:
    from adaptkit.models.building import AdaptedModel
    from adaptkit.registry import Registry
    from adaptkit.strategy import Strategy
    from adaptkit.task import Task

FORMAT_VERSION = 2
TENSORS = "adapter_model.safetensors"
PROVENANCE = "adaptkit.json"
# As transformers calls it; no part of what identifies a tokenizer that was trained.
CHAT_TEMPLATE = "chat_template.jinja"
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


def save_adapter(
    folder: Path,
    adapted: AdaptedModel,
    *,
    recipe: Recipe,
    strategy: Strategy[Any],
    task: Task[Any],
    registry: Registry,
    data: Mapping[str, str],
) -> None:
    """Writes the adapter folder: tensors, provenance, and the files by which other libraries read them.

    Args:
        folder: Written aside and renamed into place; an older one of the same run is replaced.
        adapted: The model, at the step that is to be kept.
        recipe: Of the run.
        strategy: Of the run.
        task: Of the run.
        registry: Knows which distribution the strategy came from.
        data: sha256 of each source, by the name that the recipe gives it.
    """
    from safetensors.torch import save_file

    staged = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    tensors = {name: tensor.contiguous().cpu().clone() for name, tensor in strategy.state(adapted.model).items()}
    save_file(tensors, staged / TENSORS, metadata={"format": "pt"})
    for name, value in strategy.adapter_files(adapted.model).items():
        write_json(staged / name, {**value, "base_model_name_or_path": adapted.source.spec.name})
    _save_tokenizer(adapted, staged / "tokenizer")
    origin = registry.strategies[strategy.name]
    write_json(
        staged / PROVENANCE,
        {
            "format_version": FORMAT_VERSION,
            "recipe": recipe.model_dump(mode="json"),
            "task_state": task.state(),
            "base": {
                "fingerprint": adapted.base.fingerprint,
                "family": adapted.base.family,
                "precision": adapted.base.precision,
                "head_modules": list(adapted.base.head_modules),
            },
            "tensors": file_sha256(staged / TENSORS),
            "strategy": {"name": strategy.name, "distribution": origin.distribution, "version": origin.version},
            "data": dict(data),
            "versions": library_versions(),
        },
    )
    if folder.exists():
        shutil.rmtree(folder)
    staged.rename(folder)


def _save_tokenizer(adapted: AdaptedModel, folder: Path) -> None:
    """Keeps a tokenizer that the base's files do not have, for other libraries: file by file the one that the run
    trained; or one that gained tokens, or from the task a chat template.
    """
    source, tokenizer = adapted.source, adapted.base.tokenizer
    templated = tokenizer.chat_template != source.tokenizer.chat_template
    if source.tokenizer_folder is not None:
        shutil.copytree(source.tokenizer_folder, folder)
        if templated:
            (folder / CHAT_TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")
    elif source.spec.new_tokens or templated:
        tokenizer.save_pretrained(folder)


def library_versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
