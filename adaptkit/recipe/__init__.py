"""Recipes: what they may say, how they are read, and what is said when they are wrong."""

from adaptkit.recipe.schema import (
    DataSpec,
    ModelSpec,
    Options,
    Precision,
    Recipe,
    StrategyOptions,
    TaskOptions,
    TrainingSpec,
)

__all__ = [
    "DataSpec",
    "ModelSpec",
    "Options",
    "Precision",
    "Recipe",
    "StrategyOptions",
    "TaskOptions",
    "TrainingSpec",
]
