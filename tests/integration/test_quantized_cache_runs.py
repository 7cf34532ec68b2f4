"""A run whose base comes from the cache is the run whose base was quantised, and so is what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

import adaptkit
from adaptkit.artifact.run import Run
from adaptkit.models.base.quantized_cache import cache_root
from adaptkit.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(recipe: Recipe, *, cached: bool) -> Run:
    model = recipe.model.model_copy(update={"cache_quantized": cached})
    return adaptkit.load(adaptkit.run(recipe.model_copy(update={"model": model})).directory)


def test_a_run_from_the_cache_trains_and_answers_as_any_other(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(tmp_path / "cache"))
    plain = trained(recipe("qlora", output="plain", max_steps=4), cached=False)
    assert not cache_root().exists()
    for output in ("filling", "reading"):
        run = trained(recipe("qlora", output=output, max_steps=4), cached=True)
        assert len(list(cache_root().iterdir())) == 1
        assert run.fingerprint == plain.fingerprint
        assert run.predict(["the film was great"]) == plain.predict(["the film was great"])
        for one, other in zip(adapters(run), adapters(plain), strict=True):
            assert one.keys() == other.keys()
            assert all(tensor.equal(other[name]) for name, tensor in one.items())
        assert base_names(run) == base_names(plain)


def adapters(run: Run) -> list[dict[str, Tensor]]:
    return [load_file(file) for file in sorted((run.directory / "adapter").glob("*.safetensors"))]


def base_names(run: Run) -> object:
    settings = json.loads((run.directory / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    return settings["base_model_name_or_path"]
