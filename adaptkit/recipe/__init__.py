"""Recipes: what they may say, how they are read, and what is said when they are wrong."""

from adaptkit.recipe.json_schema import recipe_json_schema
from adaptkit.recipe.parse import OptionsResolver, dump_recipe, load_recipe, parse_recipe
from adaptkit.recipe.schema import (
    DataSpec,
    ModelSpec,
    Options,
    Precision,
    Recipe,
    StrategyOptions,
    TaskOptions,
    TokenizerTraining,
    TrainingSpec,
)
from adaptkit.recipe.stages import StagedRecipe

__all__ = [
    "DataSpec",
    "ModelSpec",
    "Options",
    "OptionsResolver",
    "Precision",
    "Recipe",
    "StagedRecipe",
    "StrategyOptions",
    "TaskOptions",
    "TokenizerTraining",
    "TrainingSpec",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "recipe_json_schema",
]
