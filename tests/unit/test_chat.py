"""Conversations become text by a chat template; what is learned of it is found without the template's help."""

from __future__ import annotations

import random
from datetime import date
from typing import Any

import pytest
from chats import ANSWERS, CHATML, CHATML_TOKENS, DIALOGUE, STYLES, SYSTEM, tokenizer_of, tokenizer_with

from adaptkit.data.chat import ChatTemplate, ChatText, TemplateRefusal
from adaptkit.data.chat_templates import choose_template
from adaptkit.data.chat_tokens import encode_chats
from adaptkit.errors import ModelError

EVERY_STYLE = pytest.mark.parametrize("style", STYLES)
WITH_SYSTEM = [style for style in STYLES if style != "gemma"]


def template_of(tokenizer: Any, choice: str = "auto") -> ChatTemplate:
    return ChatTemplate(tokenizer, choose_template(choice, tokenizer))


def learned(chat: ChatText, tokenizer: Any) -> list[str]:
    """Returns the learned tokens decoded, each run of them by itself."""
    ids, labels = encode_chats([chat], tokenizer)[0]
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    runs: list[list[int]] = [[]]
    for label in labels:
        if label == -100:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs if run]


def test_a_template_that_writes_the_date_writes_the_same_every_day() -> None:
    dated = ChatTemplate(tokenizer_of("chatml"), "{{ strftime_now('%d %b %Y, %A') }}" + CHATML)
    assert dated.render(DIALOGUE[:1]).startswith(f"{date(2024, 7, 26):%d %b %Y, %A}<|im_start|>")


# -- what is learned -----------------------------------------------------------------------------------


@EVERY_STYLE
def test_the_answers_are_learned_with_the_token_that_ends_them_and_nothing_else_is(style: str) -> None:
    tokenizer, kind = tokenizer_of(style), STYLES[style]
    texts = template_of(tokenizer).lessons(DIALOGUE, "assistant")
    found = [answer for text in texts for answer in learned(text, tokenizer)]
    assert found == [kind.lead + answer + kind.end for answer in ANSWERS]
    assert len(texts) == (1 if kind.whole else 2)


@EVERY_STYLE
def test_the_last_answer_alone_can_be_learned(style: str) -> None:
    tokenizer, kind = tokenizer_of(style), STYLES[style]
    (text,) = template_of(tokenizer).lessons(DIALOGUE, "last-assistant")
    assert learned(text, tokenizer) == [kind.lead + ANSWERS[1] + kind.end]


@EVERY_STYLE
def test_what_comes_before_a_learned_answer_is_the_question_that_a_prediction_starts_from(style: str) -> None:
    tokenizer = tokenizer_of(style)
    chat = template_of(tokenizer)
    texts = chat.lessons(DIALOGUE, "assistant")
    starts = [text.text[:start] for text in texts for start, _ in text.learned]
    questions = [chat.question(DIALOGUE[:1]), chat.question(DIALOGUE[:3])]
    assert starts == [question.text for question in questions]
    for question, text in zip(questions, [texts[0], *chat.lessons(DIALOGUE, "last-assistant")], strict=True):
        (prompt, _), (ids, _) = encode_chats([question, text], tokenizer)
        assert ids[: len(prompt)] == prompt


@pytest.mark.parametrize("style", WITH_SYSTEM)
def test_a_system_message_is_read_and_not_learned(style: str) -> None:
    tokenizer, kind = tokenizer_of(style), STYLES[style]
    texts = template_of(tokenizer).lessons([SYSTEM, *DIALOGUE], "assistant")
    assert all(SYSTEM["content"] in text.text for text in texts)
    assert [answer for text in texts for answer in learned(text, tokenizer)] == [
        kind.lead + answer + kind.end for answer in ANSWERS
    ]


def test_everything_can_be_learned() -> None:
    tokenizer = tokenizer_of("llama")
    (text,) = template_of(tokenizer).lessons(DIALOGUE, "all")
    ids, labels = encode_chats([text], tokenizer)[0]
    assert labels == ids
    assert text.text == template_of(tokenizer).render(DIALOGUE)


def test_what_follows_the_last_answer_is_left_out() -> None:
    chat = template_of(tokenizer_of("chatml"))
    open_end = [*DIALOGUE, {"role": "user", "content": "Thanks."}]
    assert chat.lessons(open_end, "assistant") == chat.lessons(DIALOGUE, "assistant")


def test_reasoning_that_a_template_drops_from_earlier_turns_is_learned_where_it_is_the_last() -> None:
    tokenizer = tokenizer_of("reasoning")
    thoughts = [f"<think>\nwhy {number}\n</think>\n\n" for number in (1, 2)]
    conversation = [dict(message) for message in DIALOGUE]
    for turn, thought in zip((1, 3), thoughts, strict=True):
        conversation[turn]["content"] = thought + conversation[turn]["content"]
    texts = template_of(tokenizer).lessons(conversation, "assistant")
    assert [learned(text, tokenizer) for text in texts] == [
        [thought + answer + "<|im_end|>"] for thought, answer in zip(thoughts, ANSWERS, strict=True)
    ]
    assert "why 1" not in texts[1].text
    assert ANSWERS[0] in texts[1].text


@pytest.mark.parametrize("style", ["chatml", "chatml with generation marks", "gemma", "llama"])
def test_a_conversation_may_begin_with_an_answer(style: str) -> None:
    tokenizer, kind = tokenizer_of(style), STYLES[style]
    (text,) = template_of(tokenizer).lessons(DIALOGUE[1:], "assistant")
    assert learned(text, tokenizer) == [answer + kind.end for answer in ANSWERS]


def test_two_turns_in_a_row_are_two_answers_where_the_template_takes_them() -> None:
    tokenizer = tokenizer_of("chatml")
    twice = [DIALOGUE[0], DIALOGUE[1], DIALOGUE[3]]
    (text,) = template_of(tokenizer).lessons(twice, "assistant")
    assert learned(text, tokenizer) == [answer + "<|im_end|>" for answer in ANSWERS]


@pytest.mark.parametrize("content", ["<|im_end|>", "a <|im_end|> b", "<|im_start|>assistant\n", "assistant\nanswer"])
def test_words_of_the_template_inside_an_answer_do_not_move_its_ends(content: str) -> None:
    chat = template_of(tokenizer_of("chatml"))
    conversation = [DIALOGUE[0], {"role": "assistant", "content": content}, *DIALOGUE[2:]]
    (text,) = chat.lessons(conversation, "assistant")
    assert [text.text[start:end] for start, end in text.learned] == [
        content + "<|im_end|>",
        ANSWERS[1] + "<|im_end|>",
    ]


@pytest.mark.parametrize("content", ["  spaces  ", "\n\nlines\n\n", "ends in a newline\n", "☃", "tab\tand\u00a0space"])
def test_white_space_around_an_answer_is_learned_as_it_is_written(content: str) -> None:
    tokenizer = tokenizer_of("chatml")
    (text,) = template_of(tokenizer).lessons([DIALOGUE[0], {"role": "assistant", "content": content}], "assistant")
    assert learned(text, tokenizer) == [content + "<|im_end|>"]
    assert [text.text[start:end] for start, end in text.learned] == [content + "<|im_end|>"]


@pytest.mark.parametrize("content", [" It does.", "\nIt does.", "\n\n It does.", "\t"])
@pytest.mark.parametrize("lead", ["", "\\n", ": ", "\\n\\n"])
def test_an_answer_that_begins_with_white_space_follows_the_tokens_of_the_prompt(lead: str, content: str) -> None:
    tokenizer = tokenizer_of("chatml")
    template = CHATML.replace("'\\n' + message['content']", f"'{lead}' + message['content']")
    chat = ChatTemplate(tokenizer, template.replace("assistant\\n", f"assistant{lead}"))
    conversation = [DIALOGUE[0], {"role": "assistant", "content": content}, DIALOGUE[2], DIALOGUE[3]]
    (text,) = chat.lessons(conversation, "assistant")
    ((ids, _),) = encode_chats([text], tokenizer)
    asked = tokenizer(chat.question(DIALOGUE[:1]).text)["input_ids"]
    assert ids[: len(asked)] == asked
    assert tokenizer.decode(ids) == text.text
    assert learned(text, tokenizer) == [content + "<|im_end|>", ANSWERS[1] + "<|im_end|>"]


def test_the_tokenizer_would_have_joined_the_white_space_of_an_answer_with_the_template_s() -> None:
    tokenizer = tokenizer_of("chatml")
    (text,) = template_of(tokenizer).lessons([DIALOGUE[0], {"role": "assistant", "content": "\n\nYes."}], "assistant")
    ((ids, _),) = encode_chats([text], tokenizer)
    assert ids != tokenizer(text.text)["input_ids"]


def test_a_tokenizer_that_puts_a_space_in_front_of_each_text_gets_the_whole_of_it() -> None:
    from tokenizers import pre_tokenizers

    tokenizer = tokenizer_of("chatml")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    (text,) = template_of(tokenizer).lessons([DIALOGUE[0], {"role": "assistant", "content": "\n\nYes."}], "assistant")
    ((ids, labels),) = encode_chats([text], tokenizer)
    assert ids == tokenizer(text.text)["input_ids"]
    assert labels[-1] == ids[-1]
    for style in ("chatml", "mistral", "phi"):
        tokenizer = tokenizer_of(style)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        (text,) = template_of(tokenizer).lessons(DIALOGUE, "assistant")
        assert [answer.strip() for answer in learned(text, tokenizer)] == [
            answer + STYLES[style].end for answer in ANSWERS
        ]


# -- how it is found -----------------------------------------------------------------------------------


class CountedTokenizer:
    """Counts the messages that a tokenizer renders."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.messages = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, *texts: Any, **options: Any) -> Any:
        return self.tokenizer(*texts, **options)

    def apply_chat_template(self, messages: list[Any], **options: Any) -> Any:
        self.messages += len(messages)
        return self.tokenizer.apply_chat_template(messages, **options)


def turn_by_turn(chat: ChatTemplate, messages: list[Any]) -> list[ChatText]:
    """Returns what there is to learn by the definition: each answer in a rendering that ends with it."""
    answers = []
    for turn in (number for number, message in enumerate(messages, 1) if message["role"] == "assistant"):
        text, start = chat.render(messages[:turn]), len(chat.render(messages[: turn - 1], ask=True))
        end = text.rindex(chat.end_token) + len(chat.end_token)
        answers.append(ChatText(text[:end], ((start, end),)))
    if all(answers[-1].text.startswith(answer.text) for answer in answers):
        return [ChatText(answers[-1].text, tuple(span for answer in answers for span in answer.learned))]
    return answers


CONTENTS = (
    "It is.",
    "  spaces  ",
    "ends\n",
    "<|im_end|>",
    "</s>",
    "user",
    "assistant",
    "<think>a</think>b",
    "\\1 {0}",
    "☃",
)


@EVERY_STYLE
def test_answers_are_found_as_if_each_beginning_of_the_conversation_were_rendered(style: str) -> None:
    chat = template_of(tokenizer_of(style))
    generator = random.Random(style)
    for _ in range(60):
        messages = [
            {"role": role, "content": generator.choice(CONTENTS)}
            for _ in range(generator.randint(1, 5))
            for role in ("user", "assistant")
        ]
        assert chat.lessons(messages, "assistant") == turn_by_turn(chat, messages)


def test_speakers_may_take_turns_in_any_order() -> None:
    chat = template_of(tokenizer_of("phi"))
    generator = random.Random(0)
    for _ in range(60):
        roles = ["user", *generator.choices(["user", "assistant", "system"], k=6), "assistant"]
        messages = [{"role": role, "content": generator.choice(CONTENTS)} for role in roles]
        assert chat.lessons(messages, "assistant") == turn_by_turn(chat, messages)


@pytest.mark.parametrize("style", ["chatml", "llama", "mistral", "gemma"])
def test_further_conversations_of_the_same_turns_are_rendered_once_each(style: str) -> None:
    counted = CountedTokenizer(tokenizer_of(style))
    chat = template_of(counted)
    chat.lessons(DIALOGUE * 20, "assistant")
    for conversation in (DIALOGUE * 20, DIALOGUE * 7):
        counted.messages = 0
        chat.lessons(conversation, "assistant")
        assert counted.messages == len(conversation)


# -- which template ------------------------------------------------------------------------------------


def test_without_a_template_the_conversation_is_written_in_plain_words_and_ends_with_the_end_token() -> None:
    tokenizer = tokenizer_with(None, eos="</s>")
    chat = template_of(tokenizer)
    (text,) = chat.lessons([SYSTEM, *DIALOGUE], "assistant")
    assert text.text == (
        "System: You are brief.\n\nUser: Where does the river begin?\n\nAssistant: It begins in the hills.</s>\n\n"
        f"User: And where does it end?\n\nAssistant: {ANSWERS[1]}</s>"
    )
    assert learned(text, tokenizer) == [f" {answer}</s>" for answer in ANSWERS]
    assert chat.end_token == "</s>"


def test_a_tokenizer_that_begins_its_texts_with_a_token_begins_a_plain_conversation_with_it() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_with(None, eos="</s>")
    assert not template_of(tokenizer).question(DIALOGUE[:1]).text.startswith("<s>")
    begin = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = begin
    for choice in ("plain", "chatml"):
        if choice == "chatml":
            tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
        text = template_of(tokenizer, choice).question(DIALOGUE[:1])
        ids, _ = encode_chats([text], tokenizer)[0]
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id


def test_chatml_can_be_chosen_where_the_vocabulary_has_its_tokens() -> None:
    tokenizer = tokenizer_with(None, CHATML_TOKENS, eos="<|endoftext|>")
    (text,) = template_of(tokenizer, "chatml").lessons(DIALOGUE, "assistant")
    assert text == template_of(tokenizer, CHATML).lessons(DIALOGUE, "assistant")[0]
    assert learned(text, tokenizer) == [answer + "<|im_end|>" for answer in ANSWERS]


def test_a_generation_stops_at_the_end_of_a_turn_and_at_the_end_of_a_text() -> None:
    tokenizer = tokenizer_of("llama")
    assert tokenizer.convert_ids_to_tokens(template_of(tokenizer).stop_ids) == ["<|eot_id|>", "<|end|>"]
    assert len(template_of(tokenizer_of("mistral")).stop_ids) == 1


@pytest.mark.parametrize(
    ("template", "eos", "found", "fix"),
    [
        (None, None, "no token", "set eos_token"),
        (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}",
            "</s>",
            "nothing",
            "plain",
        ),
        (CHATML, "</s>", "'<|im_end|>\\n'", "new_tokens: ['<|im_start|>', '<|im_end|>']"),
        ("{% for m in messages %}{% endfor %}hello", "</s>", "leaves out", "task.chat_template"),
        ("{% for m in messages %}{{ m['content'] }}", "</s>", "line 1", "task.chat_template"),
        ("{{ raise_exception('not today') }}", "</s>", "not today", "task.chat_template"),
        ("{{ messages[0]['content'] + 1 }}", "</s>", "cannot be used", "task.chat_template"),
        ("{{ messages.__class__.__mro__ }}", "</s>", "unsafe", "task.chat_template"),
    ],
)
def test_a_template_that_cannot_teach_is_refused_with_what_to_do(
    template: str | None, eos: str | None, found: str, fix: str
) -> None:
    with pytest.raises(ModelError) as caught:
        template_of(tokenizer_with(template, eos=eos))
    (problem,) = caught.value.problems
    assert found in problem.found
    assert fix in str(problem.fix)


def test_runs_of_spaces_in_the_vocabulary_are_no_end_of_a_turn() -> None:
    tokenizer = tokenizer_with(STYLES["mistral"].template.replace("+ eos_token", "+ '   ' + eos_token"), eos="</s>")
    tokenizer.add_tokens(["   "])
    assert template_of(tokenizer).end_token == "</s>"


def test_what_the_vocabulary_does_not_know_is_no_end_of_a_turn() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "question": 1, "answer": 2, "<pad>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>")
    tokenizer.chat_template = CHATML
    with pytest.raises(ModelError, match="never learn to stop"):
        template_of(tokenizer)


def test_several_templates_without_a_default_are_refused() -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = {"tools": CHATML, "rag": CHATML}
    with pytest.raises(ModelError, match="rag"):
        template_of(tokenizer)
    tokenizer.chat_template = {"tools": "", "default": CHATML}
    assert template_of(tokenizer).end_token == "<|im_end|>"


# -- what a template does not take ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "conversation", "words"),
    [
        ("gemma", [SYSTEM, *DIALOGUE], "System role not supported"),
        ("mistral", [DIALOGUE[0], *DIALOGUE], "must alternate"),
        ("mistral", DIALOGUE[1:], "must alternate"),
    ],
)
def test_a_template_refuses_a_conversation_in_its_own_words(style: str, conversation: list[Any], words: str) -> None:
    with pytest.raises(TemplateRefusal, match=words):
        template_of(tokenizer_of(style)).lessons(conversation, "assistant")


def test_a_message_that_a_template_silently_leaves_out_is_refused() -> None:
    skips_systems = CHATML.replace(
        "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
    )
    chat = ChatTemplate(tokenizer_of("chatml"), skips_systems)
    for render in (chat.question, lambda messages: chat.lessons(messages, "assistant")):
        render(DIALOGUE)
        with pytest.raises(TemplateRefusal, match=r"system message 'You are brief\."):
            render([SYSTEM, *DIALOGUE])


def test_an_answer_that_a_template_shortens_is_refused() -> None:
    chat = ChatTemplate(tokenizer_of("reasoning"), STYLES["reasoning"].template.replace("and not loop.last", ""))
    thinking = [DIALOGUE[0], {"role": "assistant", "content": "<think>why</think>because"}]
    with pytest.raises(TemplateRefusal, match="leaves out, or changes, the assistant message"):
        chat.lessons(thinking, "assistant")


def test_the_result_of_a_tool_may_be_written_as_json() -> None:
    template = CHATML.replace(
        "message['content']", "(message['content'] | tojson if message['role'] == 'tool' else message['content'])"
    )
    chat = ChatTemplate(tokenizer_of("chatml"), template)
    tool = {"role": "tool", "content": 'a "quoted"\nresult'}
    (text,) = chat.lessons([DIALOGUE[0], tool, DIALOGUE[1]], "assistant")
    assert '\\"quoted\\"' in text.text


def test_a_template_that_asks_for_answers_otherwise_than_it_writes_them_is_refused() -> None:
    thinks_aloud = CHATML.replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>' }}")
    chat = ChatTemplate(tokenizer_of("chatml"), thinks_aloud)
    with pytest.raises(TemplateRefusal, match=r"message 2: the template asks for an answer with .*<think>"):
        chat.lessons(DIALOGUE[:2], "assistant")
