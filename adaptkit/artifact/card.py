"""The model card: what a person who finds the folder needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote
from typing import Any

from adaptkit.recipe import Recipe


def model_card(recipe: Recipe, results: Mapping[str, Any], directory: str) -> str:
    """Returns the README.md of a run."""
    figures = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(results["metrics"].items()))
    measured = f"| measured on `{recipe.data.named('evaluation')}` | |\n|---|---|\n{figures}"
    table = measured if figures else "It was not evaluated."
    return f"""# {recipe.strategy.name} on {recipe.model.name}

`{recipe.model.name}` adapted to `{recipe.task.name}` with the strategy `{recipe.strategy.name}` by adaptkit.

{table}

- Trained on `{recipe.data.named("train")}`, seed {recipe.training.seed}, {results["steps"]} optimizer steps;
  the kept step is {results["kept_step"]}.
- {results["trainable_parameters"]:,} of {results["total_parameters"]:,} parameters trained.
- `recipe.yaml` is the whole recipe; `adapter/adaptkit.json` says what it was made from.

    adaptkit predict {quote(directory)} --text "..."
    adaptkit evaluate {quote(directory)} --data FILE
"""
