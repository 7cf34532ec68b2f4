"""Which chat template turns conversations into text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptkit.errors import ModelError

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# For tokenizers without a template: words, and the end token that the base knows.
PLAIN = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
TEMPLATES: Mapping[str, str] = {"chatml": CHATML, "plain": PLAIN}


def choose_template(choice: str, tokenizer: Any) -> str:
    """Returns a template in Jinja: the tokenizer's own (`auto`), `chatml`, `plain`, or `choice` itself.

    Raises:
        ModelError: The tokenizer has several templates, and none of them is the default.
    """
    if choice == "auto":
        if not tokenizer.chat_template:
            return choose_template("plain", tokenizer)
        try:
            return str(tokenizer.get_chat_template())
        except ValueError as error:
            fix = "set task.chat_template to a .jinja file with one of them"
            raise ModelError(f"the tokenizer's chat template cannot be used: {error}", fix=fix) from error
    if choice not in TEMPLATES:
        return choice
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if begins else "") + TEMPLATES[choice]
