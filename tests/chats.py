"""Tiny tokenizers with chat templates in the manner of well-known models, and conversations to render."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

CORPUS = (
    "Is the cat in the garden? The cat is in the garden, and so is the dog.",
    "Where does the river begin? It begins in the hills, far from the sea.",
    "You are a helpful assistant. User: Assistant: System: question answer",
    "One paragraph.\n\n" * 20,
)
SYSTEM = {"role": "system", "content": "You are brief."}
ANSWERS = ("It begins in the hills.", "Far,\nfar away: 'über' the sea ☃.")
DIALOGUE = [
    {"role": "user", "content": "Where does the river begin?"},
    {"role": "assistant", "content": ANSWERS[0]},
    {"role": "user", "content": "And where does it end?"},
    {"role": "assistant", "content": ANSWERS[1]},
]


@dataclass(frozen=True)
class Style:
    """A chat template and the tokens that it needs.

    Attributes:
        template: In Jinja.
        end: The token that ends an assistant's turn.
        tokens: Special tokens, `end` among them.
        eos: The tokenizer's end token, or None.
        lead: What stands between the words that ask for an answer and the answer.
        whole: Whether a turn is written alike whatever follows, so that a conversation is one text.
    """

    template: str
    end: str
    tokens: Sequence[str]
    eos: str | None
    lead: str = ""
    whole: bool = True


CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}"""

# A default system message, and marks for what is generated: the end token stands outside of them.
CHATML_WITH_MARKS = """{% if messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] }}{% endgeneration %}
{%- else %}
{{ message['content'] }}
{%- endif %}
{{ '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}"""

LLAMA = """{{ bos_token }}
{%- for message in messages %}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

# Asks for an answer with nothing but the end of the instruction, and insists on turns that alternate.
MISTRAL = """{% if messages[0]['role'] == 'system' %}
{% set preface = messages[0]['content'] + '\\n\\n' %}
{% set turns = messages[1:] %}
{% else %}
{% set preface = '' %}
{% set turns = messages %}
{% endif %}
{{ bos_token }}
{%- for message in turns %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate user/assistant/user/assistant') }}
{%- endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + (preface if loop.first else '') + message['content'] + '[/INST]' }}
{%- else %}
{{ ' ' + message['content'] + eos_token }}
{%- endif %}
{%- endfor %}"""

# Another name for the assistant, and no system message.
GEMMA = """{{ bos_token }}
{%- for message in messages %}
{% if message['role'] == 'system' %}
{{ raise_exception('System role not supported') }}
{%- endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<start_of_turn>model\\n' }}
{%- endif %}"""

# Ends the whole conversation, and so each beginning of one, with another token than a turn.
PHI = """{% for message in messages %}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>\\n' }}
{%- else %}
{{ eos_token }}
{%- endif %}"""

# Keeps the reasoning of the last answer only.
REASONING = """{% for message in messages %}
{% set content = message['content'] %}
{% if message['role'] == 'assistant' and not loop.last and '</think>' in content %}
{% set content = content.split('</think>')[-1].lstrip('\\n') %}
{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}"""

# The last answer ends the text, the earlier ones only their turn.
LAST_ONE_ENDS = """{% for message in messages %}
{{ message['role'] + ':' + message['content'] }}
{%- if message['role'] == 'assistant' and loop.last %}
{{ eos_token }}
{%- else %}
{{ '<|sep|>' }}
{%- endif %}
{%- endfor %}
{% if add_generation_prompt %}
{{ 'assistant:' }}
{%- endif %}"""

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
STYLES: Mapping[str, Style] = {
    "chatml": Style(CHATML, "<|im_end|>", CHATML_TOKENS, "<|im_end|>"),
    "chatml whose turns end otherwise than a text": Style(CHATML, "<|im_end|>", CHATML_TOKENS, "<|endoftext|>"),
    "chatml without an end token of texts": Style(CHATML, "<|im_end|>", CHATML_TOKENS, None),
    "chatml with generation marks": Style(CHATML_WITH_MARKS, "<|im_end|>", CHATML_TOKENS, "<|im_end|>"),
    "llama": Style(
        LLAMA, "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end|>"), "<|end|>"
    ),
    "mistral": Style(MISTRAL, "</s>", ("[INST]", "[/INST]", "</s>"), "</s>", lead=" "),
    "gemma": Style(GEMMA, "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>", "<eos>"), "<eos>"),
    "phi": Style(PHI, "<|end|>", ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "</s>"), "</s>"),
    "reasoning": Style(REASONING, "<|im_end|>", CHATML_TOKENS, "<|im_end|>"),
    "the last one ends": Style(LAST_ONE_ENDS, "</s>", ("</s>", "<|sep|>"), "</s>", whole=False),
}


@cache
def _model(special: tuple[str, ...]) -> str:
    """Returns the JSON of a byte-level BPE that has learned `CORPUS`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    text: str = tokenizer.to_str()
    return text


def tokenizer_with(template: str | None, tokens: Sequence[str] = (), eos: str | None = None) -> Any:
    """Returns a fast tokenizer that has special tokens and a chat template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_model(tuple(dict.fromkeys([*tokens, *([eos] if eos else [])])))),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token=eos,
        model_max_length=512,
    )
    tokenizer.chat_template = template
    return tokenizer


def tokenizer_of(style: str) -> Any:
    """Returns a tokenizer in one of the `STYLES`."""
    return tokenizer_with(STYLES[style].template, STYLES[style].tokens, STYLES[style].eos)
