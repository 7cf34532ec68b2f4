"""A file says its rows in its own columns; they are told from those, and become the roles of the task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from adaptkit.data.columns import Layout
from adaptkit.data.recognition import layouts_of, read_as
from adaptkit.errors import AdaptkitError, DataError, Problem, RecipeError
from adaptkit.format import Format
from adaptkit.formats import adaptkit_register_formats
from adaptkit.task import Row

USER, ASSISTANT = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}
SYSTEM = {"role": "system", "content": "be brief"}
CHAT: Any = SimpleNamespace(roles=("messages",), label_roles=(), optional_roles=())
SEQ2SEQ: Any = SimpleNamespace(roles=("source",), label_roles=("target",), optional_roles=())
CLASSIFICATION: Any = SimpleNamespace(roles=("text",), label_roles=("label",), optional_roles=("text_pair",))

FORMATS: dict[str, type[Format]] = {}
adaptkit_register_formats(lambda cls: FORMATS.setdefault(cls.name, cls))


def layouts(task: Any, *, labelled: bool = True) -> dict[str, Layout]:
    return layouts_of(task, FORMATS, labelled=labelled)


def read(task: Any, *values: Mapping[str, Any], form: str = "auto", labelled: bool = True, **columns: str) -> Any:
    """Returns the values of the rows by role, and the name of the format."""
    rows = [Row(value, f"a.jsonl:{line}") for line, value in enumerate(values, 1)]
    read, name = read_as(rows, form, columns, layouts(task, labelled=labelled))
    assert [row.where for row in read] == [row.where for row in rows]
    return [dict(row.values) for row in read], name


def problems(task: Any, *values: Mapping[str, Any], kind: type[AdaptkitError] = DataError, **options: Any) -> Any:
    with pytest.raises(kind) as caught:
        read(task, *values, **options)
    return caught.value.problems


def messages(value: Mapping[str, Any], form: str, *, labelled: bool = True) -> list[dict[str, str]]:
    """Returns the messages of a row whose format has to be found."""
    [row], name = read(CHAT, value, labelled=labelled)
    assert name == form
    found: list[dict[str, str]] = row["messages"]
    return found


def pasted(problem: Problem) -> Any:
    """Returns what a fix says to paste into the data section."""
    return yaml.safe_load((problem.fix or "").partition("data: ")[2])


# -- what rows become ----------------------------------------------------------------------------------


def test_the_tasks_own_roles_are_a_format_of_that_name() -> None:
    assert read(CHAT, {"messages": [USER, ASSISTANT], "id": 1}) == ([{"messages": [USER, ASSISTANT]}], "messages")
    assert read(CLASSIFICATION, {"text": "a", "label": "b"}) == ([{"text": "a", "label": "b"}], "text+label")
    assert read(SEQ2SEQ, {"source": "a", "target": "b"})[1] == "source+target"


def test_what_the_system_says_stands_in_front_of_a_prompt() -> None:
    row = {"prompt": "why?", "completion": "because", "system": "Be brief."}
    system = {"role": "system", "content": "Be brief."}
    assert messages(row, "prompt-completion") == [system, USER, ASSISTANT]


@pytest.mark.parametrize("completion", ["completion", "response"])
@pytest.mark.parametrize("prompt", ["why?", [USER]])
@pytest.mark.parametrize("answer", ["because", [ASSISTANT]])
def test_prompt_and_completion_are_two_messages_or_lists_of_them(completion: str, prompt: Any, answer: Any) -> None:
    assert messages({"prompt": prompt, completion: answer}, "prompt-completion") == [USER, ASSISTANT]


@pytest.mark.parametrize("blank", [None, "", "  "])
def test_an_alpaca_row_without_input_asks_the_instruction_alone(blank: Any) -> None:
    row = {"instruction": "why?", "input": blank, "output": "because"}
    assert messages(row, "alpaca") == [USER, ASSISTANT]


def test_a_row_has_one_system_message_however_often_it_is_written() -> None:
    turns = [{"from": "system", "value": "be brief"}, {"from": "human", "value": USER["content"]}]
    shared = {"conversations": turns}
    prompted = {"prompt": [SYSTEM, USER], "completion": ASSISTANT["content"]}
    for row, name in ((shared, "sharegpt"), (prompted, "prompt-completion")):
        assert messages({**row, "system": "be brief"}, name) == messages(row, name)
        with pytest.raises(DataError, match="two system messages"):
            messages({**row, "system": "be verbose"}, name)


def test_an_alpaca_row_asks_instruction_and_input_and_may_set_the_system() -> None:
    row = {"instruction": "translate", "input": "eau", "output": "water", "system": "be brief"}
    question = {"role": "user", "content": "translate\n\neau"}
    assert messages(row, "alpaca") == [SYSTEM, question, {"role": "assistant", "content": "water"}]


def test_instruction_context_and_response_are_an_alpaca_row_too() -> None:
    row = {"instruction": "translate", "context": "eau", "response": "water", "category": "x"}
    assert [message["content"] for message in messages(row, "alpaca")] == ["translate\n\neau", "water"]


@pytest.mark.parametrize(("human", "model"), [("human", "gpt"), ("user", "assistant"), ("Human", "GPT")])
def test_turns_of_sharegpt_are_messages_of_user_and_assistant(human: str, model: str) -> None:
    turns = [{"from": human, "value": "why?"}, {"from": model, "value": "because"}]
    assert messages({"conversations": turns}, "sharegpt") == [USER, ASSISTANT]
    assert messages({"conversations": turns, "system": "be brief"}, "sharegpt") == [SYSTEM, USER, ASSISTANT]
    assert messages({"conversations": [{"from": "system", "value": "be brief"}, *turns]}, "sharegpt")[0] == SYSTEM


@pytest.mark.parametrize(("document", "summary"), [("document", "summary"), ("article", "highlights")])
def test_a_document_and_its_summary_are_source_and_target(document: str, summary: str) -> None:
    assert read(SEQ2SEQ, {document: "long", summary: "short", "id": 1}) == (
        [{"source": "long", "target": "short"}],
        "summarization",
    )


def test_rows_to_predict_need_no_labels() -> None:
    assert messages({"prompt": "why?"}, "prompt-completion", labelled=False) == [USER]
    assert messages({"instruction": "why?"}, "alpaca", labelled=False) == [USER]
    assert messages({"prompt": "why?", "completion": "because"}, "prompt-completion", labelled=False) == [USER]
    assert read(SEQ2SEQ, {"article": "long"}, labelled=False)[0] == [{"source": "long"}]


def test_columns_of_other_names_are_named_by_the_formats_own_roles() -> None:
    row = {"q": "why?", "a": "because"}
    assert read(CHAT, row, prompt="q", completion="a") == ([{"messages": [USER, ASSISTANT]}], "prompt-completion")
    assert read(CHAT, row, instruction="q", output="a")[1] == "alpaca"


def test_a_key_of_an_object_is_a_column() -> None:
    row = {"translation": {"en": "water", "es": "agua"}}
    columns = {"source": "translation.en", "target": "translation.es"}
    assert read(SEQ2SEQ, row, **columns) == ([{"source": "water", "target": "agua"}], "source+target")


def test_a_column_whose_name_has_a_dot_is_itself() -> None:
    row = {"text.en": "a", "text": {"en": "b"}, "label": 1}
    assert read(CLASSIFICATION, row, text="text.en")[0] == [{"text": "a", "label": 1}]


# -- which format it is --------------------------------------------------------------------------------


def test_the_tasks_own_roles_come_first() -> None:
    row = {"messages": [USER, ASSISTANT], "prompt": "why?", "completion": "because"}
    assert read(CHAT, row)[1] == "messages"
    assert read(CHAT, row, form="prompt-completion")[1] == "prompt-completion"


def test_of_two_formats_that_fit_none_is_guessed() -> None:
    row = {"prompt": "a", "completion": "b", "instruction": "c", "output": "d"}
    [problem] = problems(CHAT, row)
    assert problem.found == "the columns fit more than one format: 'alpaca', 'prompt-completion'"
    assert read(CHAT, row, form=pasted(problem)["format"])


def test_rows_of_another_format_than_asked_for_are_recognised() -> None:
    alpaca = {"instruction": "a", "output": "b"}
    [problem] = problems(CHAT, alpaca, form="messages")
    assert problem.found == "there is no column 'messages'"
    assert problem.where == "a.jsonl:1"
    assert problem.allowed == "'instruction', 'output'"
    assert problem.fix == "these look like alpaca rows: data: {format: alpaca}"
    assert "these look like messages rows" in problems(CHAT, {"messages": []}, form="sharegpt")[0].fix


def test_columns_that_fit_nothing_are_answered_with_what_each_format_needs() -> None:
    [problem] = problems(CHAT, {"id": 1, "thread": []})
    assert problem.found == "the columns 'id', 'thread' fit no format that the task reads"
    for line in (
        "messages: messages",
        "alpaca: instruction, output or response (perhaps input, system)",
        "prompt-completion: prompt, completion or response (perhaps system)",
        "sharegpt: conversations or conversation (perhaps system)",
    ):
        assert line in problem.allowed.splitlines()


@pytest.mark.parametrize(
    ("task", "row", "columns"),
    [
        (CHAT, {"question": "why?", "answer": "because"}, {}),
        (CHAT, {"q": "why?", "answer": "because"}, {"prompt": "q"}),
        (CHAT, {"mesages": [USER]}, {}),
        (SEQ2SEQ, {"translation": {"en": "water", "es": "agua"}}, {}),
        (SEQ2SEQ, {"question": "why?", "answer": "because"}, {}),
        (CLASSIFICATION, {"meta": {"text": "a"}, "label": 1}, {}),
    ],
)
def test_likely_columns_are_a_line_to_paste_that_works(task: Any, row: Any, columns: dict[str, str]) -> None:
    problem, *_ = problems(task, row, **columns)
    line = pasted(problem)
    assert read(task, row, form=line.get("format", "auto"), **line["columns"])


def test_a_language_is_never_guessed_to_be_the_source() -> None:
    [problem] = problems(SEQ2SEQ, {"translation": {"en": "water", "es": "agua"}})
    assert pasted(problem) == {"columns": {"source": "translation.en", "target": "translation.es"}}


def test_an_unknown_format_is_answered_with_those_of_the_task() -> None:
    [problem] = problems(CHAT, {"instruction": "a"}, kind=RecipeError, form="alpacca")
    assert problem.found == "the task reads no format 'alpacca'"
    assert problem.fix == "did you mean 'alpaca'?"
    [problem] = problems(CLASSIFICATION, {"text": "a"}, kind=RecipeError, form="alpaca")
    assert problem.allowed == "text+label: text, label (perhaps text_pair)"


def test_an_unknown_role_is_answered_with_those_of_all_formats() -> None:
    [problem] = problems(CHAT, {"q": "a"}, kind=RecipeError, promt="q")
    assert problem.found == "the task has no role 'promt'"
    assert problem.fix == "did you mean 'prompt'?"
    [problem] = problems(CHAT, {"instruction": "a", "output": "b"}, kind=RecipeError, form="alpaca", prompt="q")
    assert problem.found == "the format alpaca has no role 'prompt'"


def test_rows_that_another_task_reads_are_answered_with_that_task() -> None:
    [problem] = problems(CHAT, {"text": "a", "label": "b"})
    assert "task: text-classification" in problem.fix
    found = problems(CLASSIFICATION, {"messages": [USER, ASSISTANT]})
    assert all("task: sft" in problem.fix for problem in found)
    [problem] = problems(CHAT, {"id": 7})
    assert "add what is missing" in problem.fix
    assert "task:" not in problem.fix


def test_a_column_that_the_recipe_names_wrongly_is_what_is_wrong() -> None:
    row = {"translation": {"en": "a", "es": "b"}}
    [problem] = problems(SEQ2SEQ, row, source="translation.en", target="translation.fr")
    assert problem.found == "there is no column 'translation.fr'"
    assert pasted(problem) == {"columns": {"source": "translation.en", "target": "translation.es"}}


def test_a_row_of_another_format_in_the_midst_is_named() -> None:
    found = problems(CHAT, {"instruction": "a", "output": "b"}, {"prompt": "a", "completion": "b"})
    assert {problem.where for problem in found} == {"a.jsonl:2"}
    assert "1 of 2 rows have no column 'instruction'" in found[0].found


# -- rows that a format cannot read --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"instruction": "a", "output": None}, "the output is null"),
        ({"instruction": "", "output": "b"}, "the instruction is an empty string"),
        ({"instruction": "a", "output": "b", "input": 7}, "the input is the number 7, not a string"),
        ({"prompt": "a", "completion": " "}, "the completion has only white space"),
        ({"prompt": [], "completion": "b"}, "the prompt is a list, not a string"),
        ({"conversations": "a"}, "conversations is a string, not a list"),
        ({"conversations": ["a"]}, "turn 1 is not an object with from and value"),
        ({"conversations": [{"from": "human"}]}, "turn 1 is not an object with from and value"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}]}, "the value of turn 2 is"),
        ({"conversations": [{"from": "humna", "value": "a"}]}, "turn 1 is from 'humna'"),
        ({"conversations": [{"from": None, "value": "a"}]}, "turn 1 is from None"),
    ],
)
def test_what_a_format_cannot_read_is_named_with_its_row_and_a_fix(row: dict[str, Any], found: str) -> None:
    [problem] = problems(CHAT, row)
    assert found in problem.found
    assert problem.where == "a.jsonl:1"
    assert problem.fix


def test_every_row_that_cannot_be_read_is_reported() -> None:
    good, bad = {"instruction": "a", "output": "b"}, {"instruction": "a", "output": None}
    assert [problem.where for problem in problems(CHAT, good, bad, good, bad)] == ["a.jsonl:2\na.jsonl:4"]


def test_messages_under_the_column_of_sharegpt_are_recognised() -> None:
    row = {"conversations": [USER, ASSISTANT]}
    [problem] = problems(CHAT, row)
    line = pasted(problem)
    assert read(CHAT, row, form=line["format"], **line["columns"])[0] == [{"messages": [USER, ASSISTANT]}]


# -- formats of plugins --------------------------------------------------------------------------------


class Headlined(Format):
    name = "headlined"
    gives = ("text", "label")
    roles = ("headline", "body")
    label_roles = ("topic",)

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        text = f"{values['headline']}. {values['body']}"
        return {"text": text, **({"label": values["topic"]} if "topic" in values else {})}


class TextAlone(Headlined):
    name = "text-alone"
    gives = ("text",)


def test_a_format_serves_the_tasks_whose_roles_it_gives() -> None:
    formats = {"headlined": Headlined, "text-alone": TextAlone}
    assert list(layouts_of(CLASSIFICATION, formats, labelled=True)) == ["text+label", "headlined"]
    assert list(layouts_of(CHAT, formats, labelled=True)) == ["messages"]
    row = Row({"headline": "Rain", "body": "It rains", "topic": "weather"}, "a.jsonl:1")
    [found], name = read_as([row], "auto", {}, layouts_of(CLASSIFICATION, formats, labelled=True))
    assert (name, found.values) == ("headlined", {"text": "Rain. It rains", "label": "weather"})


def test_what_a_format_gives_is_json() -> None:
    row = {"conversations": [{"from": "human", "value": "why?"}]}
    assert json.loads(json.dumps(messages(row, "sharegpt"))) == [USER]


def test_tagged_words_are_running_text_too() -> None:
    text: Any = SimpleNamespace(roles=("text",), label_roles=(), optional_roles=())
    assert read(text, {"tokens": ["A", "fine", "film"], "tags": ["at", "jj", "nn"]}) == (
        [{"text": "A fine film"}],
        "words",
    )
    with pytest.raises(DataError, match="the words are 'A fine film'") as raised:
        read(text, {"tokens": "A fine film"})
    assert raised.value.problems[0].where == "a.jsonl:1"
