"""Supervised fine-tuning: which conversations it takes, and what it makes of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chats import ANSWERS, CHATML, DIALOGUE, STYLES, SYSTEM, tokenizer_of, tokenizer_with
from pydantic import ValidationError

from adaptkit.errors import DataError, ModelError, Problem, RecipeError
from adaptkit.recipe import DataSpec
from adaptkit.registry import load_registry
from adaptkit.task import Row, Splits
from adaptkit.tasks.sft import Sft, SftOptions

REGISTRY = load_registry()
DATA = DataSpec(train="train.jsonl")
QUESTION = {"role": "user", "content": "Where?"}
ANSWER = {"role": "assistant", "content": "In the hills."}
LONG = 500


def task(**options: Any) -> Sft:
    made: Sft = REGISTRY.make_task(SftOptions(name="sft", **options))
    return made


def rows(*conversations: Any, file: str = "train.jsonl") -> list[Row]:
    return [Row({"messages": messages}, f"{file}:{line}") for line, messages in enumerate(conversations, 1)]


def prepared(*conversations: Any, evaluation: Any = (), **options: Any) -> Sft:
    subject = task(**options)
    subject.prepare(Splits(rows(*conversations), rows(*evaluation, file="eval.jsonl")), DATA)
    return subject


def problems_of(*conversations: Any, **more: Any) -> tuple[Problem, ...]:
    with pytest.raises(DataError) as caught:
        prepared(*conversations, **more)
    return caught.value.problems


def features(
    subject: Sft, *conversations: Any, tokenizer: Any = None, max_length: int = LONG, labelled: bool = True
) -> list[dict[str, Any]]:
    tokenizer = tokenizer or tokenizer_of("chatml")
    return subject.features(rows(*conversations), DATA, tokenizer, max_length, labelled=labelled)


def learned(feature: dict[str, Any], tokenizer: Any) -> str:
    text: str = tokenizer.decode([label for label in feature["labels"] if label != -100])
    return text


def test_the_task_imports_nothing_heavy() -> None:
    code = (
        "import sys; import adaptkit.tasks.sft; "
        "assert not {'torch', 'transformers', 'tokenizers', 'jinja2'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- messages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "found", "fix"),
    [
        ({"content": "Hello"}, "the message has no role", "say who speaks"),
        ({"role": "human", "content": "Hello"}, "unknown role 'human'", "did you mean 'user'?"),
        ({"role": "GPT", "content": "Hello"}, "unknown role 'GPT'", "did you mean 'assistant'?"),
        ({"role": "Assistant", "content": "Hello"}, "unknown role 'Assistant'", "did you mean 'assistant'?"),
        ({"role": "asistant", "content": "Hello"}, "unknown role 'asistant'", "did you mean 'assistant'?"),
        ({"role": "narrator", "content": "Hello"}, "unknown role 'narrator'", "write one of these roles"),
        ({"role": 3, "content": "Hello"}, "unknown role 3", "write one of these roles"),
        ({"role": "user"}, "the content is missing", "add it"),
        ({"role": "user", "content": None}, "the content is null", "remove it"),
        ({"role": "user", "content": ""}, "the content is an empty string", "remove it"),
        ({"role": "user", "content": " \n"}, "the content has only white space", "remove it"),
        ({"role": "user", "content": 7}, "the content is the number 7", '"7"'),
        ({"role": "user", "content": [{"type": "text", "text": "Hi"}]}, "the content is a list", "join its parts"),
        ({"role": "assistant", "content": None, "tool_calls": [{}]}, "the content is null", "write the call as text"),
        ({"role": "user", "content": "\ud83d"}, "half of a surrogate pair", "UTF-8"),
        ("Hello", "the message is a str", ""),
    ],
)
def test_a_message_that_cannot_be_used_is_named_with_its_place_and_what_to_do(
    message: Any, found: str, fix: str
) -> None:
    (problem,) = problems_of([QUESTION, ANSWER], [QUESTION, message, ANSWER])
    assert found in problem.found
    assert problem.where == "train.jsonl:2, message 2"
    assert fix in (problem.fix or "")


def test_all_messages_that_cannot_be_used_are_named_at_once() -> None:
    bad = {"role": "bot", "content": ""}
    problems = problems_of([bad, bad], [QUESTION, ANSWER], evaluation=[[bad]])
    places = "train.jsonl:1, message 1\ntrain.jsonl:1, message 2\neval.jsonl:1, message 1"
    assert [problem.found for problem in problems] == ["unknown role 'bot'", "the content is an empty string"]
    assert [problem.where for problem in problems] == [places, places]


@pytest.mark.parametrize(
    ("messages", "found", "fix"),
    [
        (None, "no messages", "remove it"),
        ([], "is empty", "remove it"),
        ("User: hi", "are a string, not a list", "data.format"),
        ({"role": "user", "content": "hi"}, "are an object, not a list", "data.format"),
        (
            [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}],
            "'from' and 'value'",
            "data: {format: sharegpt",
        ),
        ([SYSTEM, QUESTION], "nothing to learn", "add the answer"),
    ],
)
def test_a_row_that_is_no_conversation_with_an_answer_is_one_problem(messages: Any, found: str, fix: str) -> None:
    (problem,) = problems_of(messages)
    assert found in problem.found
    assert problem.where == "train.jsonl:1"
    assert fix in (problem.fix or "")


def test_there_must_be_training_rows() -> None:
    (problem,) = problems_of()
    assert "no training rows" in problem.found


def test_keys_that_are_not_read_are_noted() -> None:
    note = "messages also have 'name', 'weight': only role and content are read"
    assert prepared([QUESTION | {"name": "Ann", "weight": 1, "tool_calls": None}, ANSWER]).notes == [note]


def test_evaluation_rows_that_are_training_rows_are_noted() -> None:
    subject = prepared([QUESTION, ANSWER], DIALOGUE, evaluation=[DIALOGUE, [SYSTEM, *DIALOGUE]])
    (note,) = subject.notes
    assert note.startswith("1 of 2 evaluation rows are also training rows")


def test_the_facts_tell_how_many_conversations_there_are_and_who_speaks() -> None:
    assert prepared([QUESTION, ANSWER], [SYSTEM, *DIALOGUE], DIALOGUE).facts() == [
        "conversations: 3, of 2 to 5 messages (median 4)",
        "messages: 5 user, 5 assistant, 1 system",
    ]


def test_a_tokenizer_learns_from_what_is_said() -> None:
    assert list(task().texts(rows([QUESTION, ANSWER], [SYSTEM]))) == ["Where?", "In the hills.", "You are brief."]


# -- the template --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("choice", "hint"), [("chat-ml", "did you mean 'chatml'?"), ("llama3", "nor a .jinja file")])
def test_an_unknown_template_is_refused_with_the_recipe(choice: str, hint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SftOptions(name="sft", chat_template=choice)
    assert hint in str(caught.value)


def test_a_file_with_a_template_is_read_once_and_kept_in_the_state(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(CHATML.replace("assistant", "helper").replace("message['role']", "message['role'][:4]"))
    subject = prepared(DIALOGUE, chat_template=str(file))
    file.unlink()
    later = task(chat_template=str(file))
    later.load_state(subject.state())
    (feature,) = features(later, [SYSTEM, QUESTION])
    assert tokenizer_of("chatml").decode(feature["input_ids"]).endswith("<|im_start|>helper\n")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_template_file_that_cannot_be_read_is_a_recipe_error(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        prepared(DIALOGUE, chat_template=str(file))
    assert caught.value.problems[0].where == "task.chat_template"


def test_plain_words_in_the_absence_of_a_template_are_noted_once() -> None:
    subject, tokenizer = prepared(DIALOGUE), tokenizer_with(None, eos="</s>")
    for _ in ("train", "evaluation"):
        (feature,) = features(subject, DIALOGUE, tokenizer=tokenizer)
        assert learned(feature, tokenizer) == "".join(f" {answer}</s>" for answer in ANSWERS)
    (note,) = subject.notes
    assert "the tokenizer has no chat template, so plain is taken" in note


def test_a_tokenizer_without_a_template_and_without_an_end_token_is_refused() -> None:
    with pytest.raises(ModelError, match="never learn to stop"):
        features(prepared(DIALOGUE), DIALOGUE, tokenizer=tokenizer_with(None))


def test_the_rows_that_a_template_refuses_are_named_together_with_its_words() -> None:
    subject = prepared(DIALOGUE)
    with pytest.raises(DataError) as caught:
        features(subject, [SYSTEM, *DIALOGUE], DIALOGUE, [SYSTEM, *DIALOGUE], tokenizer=tokenizer_of("gemma"))
    [problem] = caught.value.problems
    assert problem.where == "train.jsonl:1\ntrain.jsonl:3"
    assert "System role not supported" in problem.found


def system_rows(*systems: Any, messages: Any = (QUESTION, ANSWER)) -> list[Row]:
    columns = {"system": "system_prompt"}
    values: list[dict[str, Any]] = [{"messages": list(messages), "system": system} for system in systems]
    return [Row(one, f"train.jsonl:{line}", columns) for line, one in enumerate(values, 1)]


def test_a_system_message_may_stand_in_a_column_of_its_own() -> None:
    subject, tokenizer = task(), tokenizer_of("chatml")
    of_its_own = system_rows("You are brief.", None, "  ", float("nan"))
    subject.prepare(Splits(of_its_own), DATA)
    assert "messages: 4 user, 4 assistant, 1 system" in subject.facts()
    made = subject.features(of_its_own, DATA, tokenizer, LONG)
    system = {"role": "system", "content": "You are brief."}
    assert made == features(task(), [system, QUESTION, ANSWER], *[[QUESTION, ANSWER]] * 3)
    asked = subject.features(of_its_own[:1], DATA, tokenizer, LONG, labelled=False)
    assert tokenizer.decode(asked[0]["input_ids"]).startswith("<|im_start|>system\nYou are brief.")


def test_a_system_message_is_in_one_place() -> None:
    messages = [{"role": "system", "content": "You are brief."}, QUESTION, ANSWER]
    same, other = system_rows("You are brief.", "You are long.", messages=messages)
    assert features(task(), messages) == task().features([same], DATA, tokenizer_of("chatml"), LONG)
    with pytest.raises(DataError) as caught:
        task().prepare(Splits([same, other, *system_rows(3)]), DATA)
    two, number = caught.value.problems
    assert two.where == "train.jsonl:2, column 'system_prompt'"
    assert "two system messages" in two.found
    assert number.found == "the system message is the number 3, not a string"


def test_rows_that_differ_in_the_system_alone_ask_different_things() -> None:
    one, other = (task().without_labels(row) for row in system_rows("You are brief.", "You are long."))
    assert one != other
    assert ANSWER not in one["messages"]


def test_a_system_message_is_put_in_front_of_conversations_that_have_none() -> None:
    tokenizer = tokenizer_of("chatml")
    subject = prepared(DIALOGUE, system="Answer in Latin.")
    own, given = features(subject, [SYSTEM, *DIALOGUE], DIALOGUE, tokenizer=tokenizer)
    assert tokenizer.decode(own["input_ids"]).startswith("<|im_start|>system\nYou are brief.")
    assert tokenizer.decode(given["input_ids"]).startswith("<|im_start|>system\nAnswer in Latin.")
    (question,) = features(subject, [QUESTION], tokenizer=tokenizer)
    assert "Answer in Latin." in tokenizer.decode(question["input_ids"])
    assert learned(own, tokenizer) == learned(given, tokenizer)


def test_text_that_is_the_end_token_is_noted() -> None:
    subject = prepared(DIALOGUE)
    features(subject, DIALOGUE, [{"role": "user", "content": "What is <|im_end|>?"}, ANSWER])
    assert any("1 conversations contain the text '<|im_end|>'" in note for note in subject.notes)


def test_no_answers_are_generated_where_all_turns_are_learned() -> None:
    with pytest.raises(ValidationError, match="generate_rows"):
        SftOptions(name="sft", learn="all", generate_rows=3)
    assert not SftOptions(name="sft", learn="all").generate_rows


# -- features ------------------------------------------------------------------------------------------


def test_a_feature_is_token_ids_with_one_label_each_and_nothing_else() -> None:
    (feature,) = features(prepared(DIALOGUE), DIALOGUE)
    assert feature.keys() == {"input_ids", "labels"}
    assert len(feature["input_ids"]) == len(feature["labels"])


@pytest.mark.parametrize(("learn", "answers"), [("assistant", ANSWERS), ("last-assistant", ANSWERS[1:])])
def test_the_recipe_says_which_answers_are_learned(learn: str, answers: tuple[str, ...]) -> None:
    tokenizer = tokenizer_of("chatml")
    (feature,) = features(prepared(DIALOGUE, learn=learn), DIALOGUE, tokenizer=tokenizer)
    assert learned(feature, tokenizer) == "".join(answer + "<|im_end|>" for answer in answers)


def test_the_preview_shows_where_the_loss_falls() -> None:
    tokenizer, subject = tokenizer_of("mistral"), prepared(DIALOGUE)
    (feature,) = features(subject, DIALOGUE, tokenizer=tokenizer)
    assert subject.preview(feature, tokenizer) == [
        ("<s>[INST] Where does the river begin?[/INST]", False),
        (f" {ANSWERS[0]}</s>", True),
        ("[INST] And where does it end?[/INST]", False),
        (f" {ANSWERS[1]}</s>", True),
    ]


def test_a_template_that_changes_earlier_turns_gives_a_sequence_an_answer_and_a_note() -> None:
    tokenizer, subject = tokenizer_of("the last one ends"), prepared(DIALOGUE)
    both = features(subject, DIALOGUE, [QUESTION, ANSWER], tokenizer=tokenizer)
    assert [learned(feature, tokenizer) for feature in both] == [
        answer + STYLES["the last one ends"].end for answer in (*ANSWERS, ANSWER["content"])
    ]
    (note,) = subject.notes
    assert "1 conversations became 2 sequences" in note


# -- the cut -------------------------------------------------------------------------------------------


def test_a_conversation_that_is_too_long_loses_its_end_and_is_counted() -> None:
    tokenizer, subject = tokenizer_of("chatml"), prepared(DIALOGUE)
    (whole,) = features(subject, DIALOGUE, tokenizer=tokenizer)
    assert not subject.notes
    length = len(whole["input_ids"]) - 5
    cut, short = features(subject, DIALOGUE, [QUESTION, ANSWER], tokenizer=tokenizer, max_length=length)
    assert cut == {key: values[:length] for key, values in whole.items()}
    assert learned(short, tokenizer) == ANSWER["content"] + "<|im_end|>"
    assert subject.notes == [f"1 of 2 conversations are longer than {length} tokens: their ends were cut off"]


@pytest.mark.parametrize("style", STYLES)
def test_turns_beyond_the_cut_change_nothing(style: str) -> None:
    tokenizer, subject = tokenizer_of(style), prepared(DIALOGUE)
    length = sum(len(feature["input_ids"]) for feature in features(subject, DIALOGUE, tokenizer=tokenizer))
    further = [
        {"role": "user", "content": "And what is beyond it? " * 20},
        {"role": "assistant", "content": "Nothing."},
    ]
    once, twice = DIALOGUE + further, DIALOGUE + further * 2
    shortened, whole = (features(subject, row, tokenizer=tokenizer, max_length=length) for row in (once, twice))
    assert whole == shortened
    assert "".join(learned(feature, tokenizer) for feature in whole).count(STYLES[style].end) == 2


def test_rows_whose_answers_are_all_cut_off_may_be_dropped_and_are_counted() -> None:
    tokenizer, subject = tokenizer_of("chatml"), prepared(DIALOGUE, too_long="drop")
    long = [{"role": "user", "content": "Where is the cat? " * 20}, ANSWER]
    kept = features(subject, long, [QUESTION, ANSWER], long, tokenizer=tokenizer, max_length=60)
    assert kept == features(subject, [QUESTION, ANSWER], tokenizer=tokenizer)
    (note,) = subject.notes
    assert note.startswith("2 of 3 conversations were dropped")
    assert "train.jsonl:1" in note


def test_how_many_rows_are_dropped_is_not_known_before_they_are_tokenized() -> None:
    assert task(too_long="drop").feature_count(3) is None
    assert task().feature_count(3) == 3


def test_no_question_is_dropped() -> None:
    subject = prepared(DIALOGUE, too_long="drop")
    with pytest.raises(DataError, match="none is left for the answer") as caught:
        asked(subject, [QUESTION], max_length=5)
    assert "drop" not in str(caught.value.problems[0].fix)


def test_rows_whose_answers_are_all_cut_off_are_named_with_the_tokens_that_they_need() -> None:
    tokenizer, subject = tokenizer_of("chatml"), prepared(DIALOGUE)
    long = [{"role": "user", "content": "Where is the cat? " * 20}, ANSWER]
    longer = [{"role": "user", "content": "Where is the cat? " * 30}, ANSWER]
    with pytest.raises(DataError) as caught:
        features(subject, long, [QUESTION, ANSWER], longer, tokenizer=tokenizer, max_length=60)
    first, second = caught.value.problems
    assert (first.where, second.where) == ("train.jsonl:1", "train.jsonl:3")
    needed = int(first.found.split(" has ")[1].split()[0])
    assert f"data.max_length to more than {needed}" in str(first.fix)
    assert "task.too_long=drop" in str(first.fix)
    with pytest.raises(DataError):
        features(subject, long, tokenizer=tokenizer, max_length=needed)
    (feature,) = features(subject, long, tokenizer=tokenizer, max_length=needed + 1)
    assert sum(label != -100 for label in feature["labels"]) == 1


def test_one_token_teaches_nothing_as_it_follows_none() -> None:
    subject = prepared(DIALOGUE, learn="all")
    with pytest.raises(DataError, match="none is left") as caught:
        features(subject, DIALOGUE, max_length=1)
    assert "more than 1" in str(caught.value.problems[0].fix)
    (feature,) = features(subject, DIALOGUE, max_length=2)
    assert feature["labels"] == feature["input_ids"]


def test_of_a_conversation_in_several_sequences_those_without_an_answer_left_are_dropped() -> None:
    tokenizer, subject = tokenizer_of("the last one ends"), prepared(DIALOGUE)
    first, second = features(subject, DIALOGUE, tokenizer=tokenizer)
    (kept,) = features(subject, DIALOGUE, tokenizer=tokenizer, max_length=len(first["input_ids"]))
    assert kept == first
    assert len(second["input_ids"]) > len(first["input_ids"])


# -- questions -----------------------------------------------------------------------------------------


def asked(subject: Sft, *conversations: Any, **more: Any) -> list[dict[str, Any]]:
    return features(subject, *conversations, labelled=False, **more)


def test_a_text_is_a_question_of_the_user() -> None:
    subject, tokenizer = prepared(DIALOGUE), tokenizer_of("chatml")
    (feature,) = asked(subject, subject.from_text("Where?")["messages"], tokenizer=tokenizer)
    assert feature.keys() == {"input_ids"}
    assert tokenizer.decode(feature["input_ids"]) == "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("style", STYLES)
def test_each_question_is_one_feature_whatever_was_said_before(style: str) -> None:
    tokenizer, subject = tokenizer_of(style), prepared(DIALOGUE)
    before, alone = asked(subject, DIALOGUE[:3], DIALOGUE[:1], tokenizer=tokenizer)
    assert DIALOGUE[1]["content"] in tokenizer.decode(before["input_ids"])
    assert "labels" not in before | alone


def test_the_answer_that_a_question_comes_with_is_not_read() -> None:
    subject = prepared(DIALOGUE)
    assert asked(subject, DIALOGUE) == asked(subject, DIALOGUE[:3])


@pytest.mark.parametrize("messages", [[ANSWER], [SYSTEM], [SYSTEM, ANSWER]])
def test_a_row_that_asks_nothing_cannot_be_answered(messages: Any) -> None:
    with pytest.raises(DataError, match="no message asks for an answer"):
        prepared(DIALOGUE).check(rows(messages), labelled=False)


def test_later_rows_to_measure_need_an_answer() -> None:
    with pytest.raises(DataError, match="nothing to learn"):
        prepared(DIALOGUE).check(rows([QUESTION]), labelled=True)


def test_a_question_is_never_cut() -> None:
    subject = prepared(DIALOGUE)
    (feature,) = asked(subject, [QUESTION])
    length = len(feature["input_ids"])
    assert asked(subject, [QUESTION], max_length=length + 1) == [feature]
    with pytest.raises(DataError, match=f"before the answer has {length} tokens"):
        asked(subject, [QUESTION], max_length=length)
