from __future__ import annotations

import pytest
import yaml

from adaptkit.data.columns import Layout, select_columns
from adaptkit.errors import DataError, RecipeError
from adaptkit.task import Row


def rows(*values: dict[str, object]) -> list[Row]:
    return [Row(value, f"a.jsonl:{line}") for line, value in enumerate(values, 1)]


def layout(optional: tuple[str, ...] = ()) -> Layout:
    return Layout("text+label", ("text", "label"), optional)


def problems_of(data: list[Row], columns: dict[str, str], **options):
    with pytest.raises(DataError) as caught:
        select_columns(data, layout(**options), columns)
    assert caught.value.exit_code == 3
    return caught.value.problems


def test_columns_become_roles_and_others_are_dropped():
    selected = select_columns(rows({"review": "good", "label": 1, "id": 7}), layout(), {"text": "review"})
    assert selected == [Row({"text": "good", "label": 1}, "a.jsonl:1")]


def test_an_optional_role_is_taken_where_a_row_has_it():
    data = rows({"text": "a", "label": 0, "text_pair": "b"}, {"text": "c", "label": 1})
    selected = select_columns(data, layout(optional=("text_pair",)), {})
    assert [row.values.get("text_pair") for row in selected] == ["b", None]


def test_an_optional_role_that_the_recipe_names_is_needed():
    data = rows({"text": "a", "label": 0, "premise": "b"})
    [problem] = problems_of(data, {"text_pair": "premis"}, optional=("text_pair",))
    assert "'premis'" in problem.found
    assert "did you mean 'premise'?" in problem.fix


@pytest.mark.parametrize(
    ("column", "meant"),
    [("review", "review"), ("Sentence", "Sentence"), ("content", "content"), ("texts", "texts"), ("TEXT", "TEXT")],
)
def test_a_missing_column_is_answered_with_a_line_to_paste(column, meant):
    [problem] = problems_of(rows({"id": 1, column: "good", "label": 1}), {})
    assert problem.found == "there is no column 'text'"
    assert problem.where == "a.jsonl:1"
    assert problem.allowed == f"'id', '{column}', 'label'"
    assert f"did you mean {meant!r}?" in problem.fix
    assert yaml.safe_load(problem.fix.splitlines()[-1]) == {"data": {"columns": {"text": meant}}}


def test_all_missing_columns_are_in_one_line_to_paste():
    problems = problems_of(rows({"sentence": "good", "stars": 5}), {})
    assert [problem.found for problem in problems] == ["there is no column 'text'", "there is no column 'label'"]
    for problem in problems:
        assert "data: {columns: {text: sentence, label: stars}}" in problem.fix


def test_a_misspelt_column_keeps_what_the_recipe_already_says_right():
    [problem] = problems_of(rows({"sentence": "x", "review": "good", "y": 5}), {"text": "revew", "label": "y"})
    assert problem.found == "there is no column 'revew'"
    assert "data: {columns: {label: y, text: review}}" in problem.fix


def test_a_column_whose_name_needs_quotes_in_yaml_can_be_pasted():
    [problem] = problems_of(rows({"text: en": "good", "label": 1}), {"text": "text en"})
    assert yaml.safe_load(problem.fix.splitlines()[-1])["data"]["columns"]["text"] == "text: en"


def test_without_a_likely_column_the_line_has_a_place_to_fill_in():
    [problem] = problems_of(rows({"qqq": "good", "label": 1}), {})
    assert "{columns: {text: <column>}}" in problem.fix
    assert "did you mean" not in problem.fix


def test_rows_that_lack_a_column_are_counted_and_the_first_is_named():
    [problem] = problems_of(rows({"text": "a", "label": 1}, {"text": "b"}, {"text": "c"}), {})
    assert problem.found.startswith("2 of 3 rows have no column 'label'")
    assert problem.where == "a.jsonl:2"


def test_an_unknown_role_is_answered_with_the_known_ones():
    with pytest.raises(RecipeError) as caught:
        select_columns(rows({"text": "a", "label": 1}), layout(optional=("text_pair",)), {"lable": "label"})
    [problem] = caught.value.problems
    assert problem.found == "the task has no role 'lable'"
    assert problem.allowed == "'text', 'label', 'text_pair'"
    assert problem.fix == "did you mean 'label'?"
