"""What the tests of whole runs share. Nothing heavy is imported before a test asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from adaptkit.recipe import Recipe


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU with CUDA")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Lets torch compute on one thread: the models are too small for more, and sums have one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a BERT with random weights and a dropout of 0.1."""
    return tiny.write_model(tmp_path_factory.mktemp("models") / "bert", dropout=0.1)


@pytest.fixture(scope="session")
def tiny_bert_without_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the same BERT without dropout."""
    return tiny.write_model(tmp_path_factory.mktemp("models") / "bert", dropout=0.0)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Training and evaluation rows, as the ``data`` section of a recipe."""
    return tiny.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe(tiny_bert: Path, tiny_data: dict[str, str], tmp_path: Path) -> Callable[..., Recipe]:
    """Makes a recipe for the tiny model and data: ``recipe("lora", epochs=1)``."""

    def make(strategy: Any, output: str = "run", model: Path = tiny_bert, data: Any = tiny_data, **rest: Any) -> Recipe:
        return tiny.make_recipe(model, data, tmp_path / output, strategy, **rest)

    return make


@pytest.fixture
def exact_recipe(recipe: Callable[..., Recipe], tiny_bert_without_dropout: Path) -> Callable[..., Recipe]:
    """Makes a recipe in which nothing is drawn during training: no dropout anywhere."""

    def make(strategy: str, task: Any = None, **rest: Any) -> Recipe:
        options = {"name": strategy, **tiny.STRATEGIES[strategy]}
        if "lora" in strategy:
            options["lora_dropout"] = 0.0
        task = {"head_dropout": 0.0, **(task or {})}
        return recipe(options, model=tiny_bert_without_dropout, task=task, **rest)

    return make
