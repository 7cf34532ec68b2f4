"""How much of what is wrong with data a person is shown at once."""

from __future__ import annotations

from adaptkit.data.problems import data_error
from adaptkit.errors import Problem


def test_what_is_wrong_in_the_same_way_is_one_problem_with_all_its_places() -> None:
    null, empty = Problem("it is null", fix="write one"), Problem("it is empty", fix="write one")
    given = [Problem(null.found, "a:1", fix=null.fix), Problem(empty.found, "a:2", fix=empty.fix)]
    error = data_error([*given, Problem(null.found, "b:7", fix=null.fix)])
    assert error.problems == (Problem("it is null", "a:1\nb:7", fix="write one"), given[1])


def test_problems_are_not_alike_where_they_are_repaired_otherwise() -> None:
    given = [Problem("it is null", f"a:{line}", fix=f"write {line}") for line in (1, 2)]
    assert list(data_error(given).problems) == given


def test_of_many_places_and_of_many_problems_the_first_are_shown() -> None:
    given = [Problem(f"fault {kind}", f"a:{line}") for kind in range(12) for line in range(15)]
    *shown, last = data_error(given).problems
    assert [problem.found for problem in shown] == [f"fault {kind}" for kind in range(10)]
    assert all(problem.where and problem.where.splitlines()[-2:] == ["a:9", "and 5 more"] for problem in shown)
    assert last == Problem("30 more problems")
