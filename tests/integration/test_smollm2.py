"""The chat model that the fetcher rebuilds from GGUF: it is whole, and it knows English."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

SMOLLM2 = Path(__file__).parents[2] / "assets" / "smollm2"

pytestmark = [
    pytest.mark.assets,
    pytest.mark.skipif(not (SMOLLM2 / "asset.json").is_file(), reason="`make assets` has not been run"),
]

ENGLISH = (
    "When the sun warms the surface of the sea, some of the water turns into vapour and rises into the air. As the "
    "vapour rises, it cools and forms clouds. When the droplets become heavy enough, they fall as rain or snow."
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SMOLLM2)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(SMOLLM2).eval()


def test_it_stands_in_bf16_with_its_embeddings_tied(model: Any) -> None:
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert getattr(model.config, "quantization_config", None) is None


def test_a_turn_ends_with_the_token_that_ends_generation(tokenizer: Any, model: Any) -> None:
    turn = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert turn.endswith("<|im_start|>user\nHello<|im_end|>\n")
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("text", ["Steps:\n\n1. Boil 500 ml", "été,  日本 <|im_end|>", "\tdef f(x): return x  "])
def test_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_white_space_before_a_digit_is_cut_as_in_pretraining(tokenizer: Any) -> None:
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]


def test_english_is_likelier_than_its_words_in_disorder(tokenizer: Any, model: Any) -> None:
    disorder = " ".join(random.Random(0).sample(ENGLISH.split(), len(ENGLISH.split())))
    perplexities = []
    for text in (ENGLISH, disorder):
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            perplexities.append(model(ids, labels=ids).loss.exp().item())
    assert perplexities[0] < 15
    assert perplexities[1] > 20 * perplexities[0]
