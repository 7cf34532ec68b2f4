"""Tiny encoder-decoders and a tokenizer whose words are numbers."""

from __future__ import annotations

from typing import Any

NUMBERS = 20
PADDING, END, UNKNOWN = 0, 1, 2


def number_tokenizer(template: str = "$A </s>") -> Any:
    """Returns a tokenizer of the words 0 to 19, number n with the id n + 3.

    Args:
        template: Where its special tokens stand: as T5's, without any (``$A``), or as BART's (``<s> $A </s>``).
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *map(str, range(NUMBERS)), "<s>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(word, vocabulary[word]) for word in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )


def t5(dropout: float = 0.0, layers: int = 2) -> Any:
    """Returns a T5 with random weights, tied embeddings and relative positions."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=NUMBERS + 4,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=layers,
        num_heads=4,
        dropout_rate=dropout,
        decoder_start_token_id=PADDING,
    )
    return T5ForConditionalGeneration(config)


def bart(dropout: float = 0.0) -> Any:
    """Returns a BART with random weights, absolute positions and a bias on its logits."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=NUMBERS + 4,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=32,
        dropout=dropout,
        init_std=0.2,
        pad_token_id=PADDING,
        bos_token_id=NUMBERS + 3,
        eos_token_id=END,
        decoder_start_token_id=END,
        forced_eos_token_id=END,
    )
    return BartForConditionalGeneration(config)
