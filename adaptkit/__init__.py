"""adaptkit: choose how a pretrained transformer is adapted by name, and run it on the one GPU you have.

    import adaptkit

    run = adaptkit.run("recipes/quickstart.yaml", {"strategy.name": "lora"})
    run.metrics["eval/accuracy"]
    run.predict(["a film to remember"])

Everything is imported when it is first used, so that `import adaptkit` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptkit.artifact.run import Run, load
    from adaptkit.artifact.stack import Stack, stack
    from adaptkit.errors import AdaptkitError
    from adaptkit.format import Format
    from adaptkit.hookspecs import RunInfo, StepRecord, Tracker, hookimpl
    from adaptkit.metric import TextMetric
    from adaptkit.models.layers import block_stacks, linear_layers
    from adaptkit.recipe import Recipe, TrainingSpec
    from adaptkit.runner import run
    from adaptkit.strategies._peft import PeftStrategy
    from adaptkit.strategy import AdaptContext, Capabilities, Family, FeaturePoint, Strategy, StrategyOptions
    from adaptkit.task import LossSum, Metrics, Row, Splits, Task, TaskOptions

_HOMES = {
    "AdaptContext": "adaptkit.strategy",
    "AdaptkitError": "adaptkit.errors",
    "Capabilities": "adaptkit.strategy",
    "Family": "adaptkit.strategy",
    "FeaturePoint": "adaptkit.strategy",
    "Format": "adaptkit.format",
    "LossSum": "adaptkit.task",
    "Metrics": "adaptkit.task",
    "PeftStrategy": "adaptkit.strategies._peft",
    "Recipe": "adaptkit.recipe",
    "Row": "adaptkit.task",
    "Run": "adaptkit.artifact.run",
    "RunInfo": "adaptkit.hookspecs",
    "Splits": "adaptkit.task",
    "Stack": "adaptkit.artifact.stack",
    "StepRecord": "adaptkit.hookspecs",
    "Strategy": "adaptkit.strategy",
    "StrategyOptions": "adaptkit.strategy",
    "Task": "adaptkit.task",
    "TaskOptions": "adaptkit.task",
    "TextMetric": "adaptkit.metric",
    "Tracker": "adaptkit.hookspecs",
    "TrainingSpec": "adaptkit.recipe",
    "block_stacks": "adaptkit.models.layers",
    "hookimpl": "adaptkit.hookspecs",
    "linear_layers": "adaptkit.models.layers",
    "load": "adaptkit.artifact.run",
    "run": "adaptkit.runner",
    "stack": "adaptkit.artifact.stack",
}

__all__ = [
    "AdaptContext",
    "AdaptkitError",
    "Capabilities",
    "Family",
    "FeaturePoint",
    "Format",
    "LossSum",
    "Metrics",
    "PeftStrategy",
    "Recipe",
    "Row",
    "Run",
    "RunInfo",
    "Splits",
    "Stack",
    "StepRecord",
    "Strategy",
    "StrategyOptions",
    "Task",
    "TaskOptions",
    "TextMetric",
    "Tracker",
    "TrainingSpec",
    "block_stacks",
    "hookimpl",
    "linear_layers",
    "load",
    "run",
    "stack",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'adaptkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
