"""Reading YAML: plain values with places, and one clear error for whatever is no recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_support import outcome

from adaptkit.errors import RecipeError
from adaptkit.recipe.document import Document, read_document, read_yaml
from adaptkit.recipe.yaml_text import dump

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def value_of(text: str) -> object:
    return read_yaml(text, "recipe.yaml")[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("007", 7),
        ("0x1f", 31),
        ("0o17", 15),
        ("-.inf", float("-inf")),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("True", True),
        ("null", None),
        ("~", None),
        ("12:30:45", "12:30:45"),
        ("2026-01-02", "2026-01-02"),
        ("1_000", "1_000"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("{<<: a}", {"<<": "a"}),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


def test_keys_are_text_whatever_they_look_like() -> None:
    assert value_of("{1: a, no: b, null: c}") == {"1": "a", "no": "b", "null": "c"}


def test_every_key_and_item_has_a_place() -> None:
    _, positions = read_yaml("data:\n  train: a\nlist: [x, y]\n", "recipe.yaml")
    assert positions[("data", "train")] == "recipe.yaml:2:3"
    assert positions[("list", 1)] == "recipe.yaml:3:11"


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        ("a: 1\n\tb: 2", "2:1", "tab"),
        ("a: 1\n b: 2", "2:3", "not YAML"),
        ("a: [1, 2", "1:9", "not YAML"),
        ("a: 1\nb: 2\na: 3", "3:1", "twice; first at recipe.yaml:1:1"),
        ("a: &x 1\nb: *x", "2:4", "no aliases"),
        ("a: !!python/object/apply:os.system [ls]", "1:4", "tag"),
        ("a: !!python/name:os.system x", "1:4", "tag"),
        ("!!python/name:os.system a: x", "1:1", "tag"),
        ("a: !!int x", "1:4", "not a valid int"),
        ("a: !!bool yes", "1:4", "not a valid bool"),
        ("a: " + "9" * 5000, "1:4", "not a valid int"),
        ('a: "\\ud800"', "1:4", "not a valid str"),
        ("? [a]\n: 1", "1:3", "plain text"),
        ("a: 1\n---\nb: 2", "2:1", "single document"),
        ("a: \x07", "1:4", "U+0007"),
        ("[" * 10_000, "1:51", "too deeply"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_place(text: str, where: str, found: str) -> None:
    with pytest.raises(RecipeError) as error:
        read_yaml(text, "recipe.yaml")
    assert error.value.problems[0].where == f"recipe.yaml:{where}"
    assert found in error.value.problems[0].found


def test_all_duplicates_and_tags_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as error:
        read_yaml("a: 1\na: 2\nb: !!set {x}\nc: {d: 1, d: 2}", "recipe.yaml")
    assert [problem.where for problem in error.value.problems] == [
        "recipe.yaml:2:1",
        "recipe.yaml:3:4",
        "recipe.yaml:4:11",
    ]


@pytest.mark.parametrize(
    ("content", "where", "found"),
    [
        (b"", ":1:1", "empty"),
        (b"# only a comment", ":1:1", "empty"),
        (b"- a\n- b", ":1:1", "key: value"),
        (b"a: 1\nb: caf\xe9", ":2:7", "not UTF-8"),
        (b"#" * 1_000_001, "", "too large"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, where: str, found: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as error:
        read_document(path)
    assert error.value.problems[0].where == f"{path}{where}"
    assert found in error.value.problems[0].found


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: a")
    assert read_document(path).values == {"model": "a"}


def test_a_missing_file_is_named_together_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("a: 1")
    with pytest.raises(RecipeError, match=r"did you mean 'quickstart\.yaml'"):
        read_document(tmp_path / "quickstrat.yaml")


@pytest.mark.parametrize("name", [".", "no/such/folder.yaml", "nul\0l.yaml", "n" * 5000])
def test_a_path_that_cannot_be_read_is_a_recipe_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError):
        read_document(tmp_path / name)


@given(PLAIN)
def test_what_is_dumped_is_read_back_equal(value: object) -> None:
    assert value_of(dump({"value": value})) == {"value": value}


@given(st.binary() | st.text(st.sampled_from("ab01:- \n\t[]{}*&!#%|>'\"?,\\xuU.~@`")).map(str.encode))
def test_any_content_gives_a_document_or_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any_content.yaml"
    path.write_bytes(content)
    result = outcome(lambda: read_document(path))
    assert isinstance(result, Document | RecipeError)
    if isinstance(result, RecipeError):
        assert str(result).encode()
        assert all(str(problem.where).startswith(str(path)) for problem in result.problems)
