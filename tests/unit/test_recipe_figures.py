"""What a recipe says that it gives was measured: its figures are those that the benchmark wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEASURED = json.loads((ROOT / "benchmarks" / "results" / "recipes.json").read_text(encoding="utf-8"))


def said(name: str) -> list[str]:
    """Returns the numbers of the comment that begins with `measured`."""
    text = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    comment = re.search(r"^# measured.*?(?=^#?$|^[^#])", text, re.DOTALL | re.MULTILINE)
    assert comment is not None, f"recipes/{name}.yaml does not say what it gives"
    return re.findall(r"\d+\.\d+", comment.group())


@pytest.mark.parametrize("name", MEASURED)
def test_the_figures_on_top_of_a_recipe_are_those_of_the_benchmark(name: str) -> None:
    figures = [value for run in MEASURED[name]["runs"] for value in run["metrics"].values()]
    numbers = said(name)
    assert numbers
    for number in numbers:
        places = len(number.partition(".")[2])
        assert number in {f"{value:.{places}f}" for value in figures}, number


@pytest.mark.parametrize("name", MEASURED)
def test_the_table_of_a_recipe_is_in_the_overview(name: str) -> None:
    overview = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    table = overview.partition(f"<!-- {name}:begin -->")[2].partition(f"<!-- {name}:end -->")[0]
    assert table.count("\n| ") == 2 + len(MEASURED[name]["runs"])
