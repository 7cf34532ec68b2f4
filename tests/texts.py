"""Running text, and tiny tokenizers and models in the manner of GPT-2, Llama, BERT and T5."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.recipe import DataSpec, ModelSpec
from adaptkit.task import Row

if TYPE_CHECKING:
    from adaptkit.models.base.source import ModelSource

DATA = DataSpec(train="train.jsonl")
TEXTS = (
    "Full fathom five thy father lies; of his bones are coral made.",
    "Those are pearls that were his eyes: nothing of him that doth fade,",
    "But doth suffer a sea-change into something rich and strange.",
    "Sea-nymphs hourly ring his knell: ding-dong.",
)
SENTINELS = 20
FAMILIES = {"gpt2": "decoder", "llama": "decoder", "bert": "encoder", "t5": "encoder-decoder"}


def rows(*texts: Any) -> list[Row]:
    """Returns rows as they come from a file."""
    return [Row({"text": text}, f"train.jsonl:{line}") for line, text in enumerate(texts, 1)]


@cache
def tokenizer(manner: str) -> Any:
    """Returns a tokenizer that was trained on `TEXTS`.

    ``gpt2`` adds nothing to a text, ``llama`` begins it with ``<s>``, ``bert`` puts it between ``[CLS]`` and
    ``[SEP]``, ``t5`` ends it with ``</s>`` and has sentinels.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    names: dict[str, Any] = {
        "gpt2": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "llama": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        "bert": {
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
        "t5": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    }[manner]
    special = list(dict.fromkeys(names.values()))
    if manner == "t5":
        names["additional_special_tokens"] = [f"<extra_id_{number}>" for number in range(SENTINELS)]
        special += names["additional_special_tokens"]
    if manner == "bert":
        subject = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        subject.normalizer = normalizers.BertNormalizer()
        subject.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        subject.decoder = decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    else:
        subject = Tokenizer(models.BPE())
        subject.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        subject.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    subject.train_from_iterator(TEXTS, trainer)
    template = {"llama": "<s> $A", "bert": "[CLS] $A [SEP]", "t5": "$A </s>"}.get(manner)
    if template:
        used = [(token, subject.token_to_id(token)) for token in template.split() if token != "$A"]
        subject.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=subject, **names)


def config(manner: str, **values: Any) -> Any:
    """Returns the config of a model without dropout: 2 layers, hidden 32, 128 positions."""
    import transformers

    ids = tokenizer(manner)
    common: dict[str, Any] = {"vocab_size": len(ids), "pad_token_id": ids.pad_token_id}
    if manner == "gpt2":
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
        made: Any = transformers.GPT2Config(**common, **sizes, **no_dropout, bos_token_id=0, eos_token_id=0)
    elif manner == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        made = transformers.T5Config(**common, **sizes, dropout_rate=0.0, eos_token_id=ids.eos_token_id)
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        common |= {"max_position_embeddings": 128, **sizes}
        if manner == "llama":
            made = transformers.LlamaConfig(
                **common, num_key_value_heads=2, bos_token_id=ids.bos_token_id, eos_token_id=ids.eos_token_id
            )
        else:
            made = transformers.BertConfig(**common, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    made.initializer_range = 0.1  # so that nothing that is computed is nearly uniform
    made.update(values)
    return made


def source(manner: str, folder: Path | None = None, **values: Any) -> ModelSource:
    """Returns a base: random weights, or those of a folder."""
    from transformers import AutoConfig

    from adaptkit.models.base.source import ModelSource

    if folder is None:
        spec, made = ModelSpec(name=manner, init="random"), config(manner, **values)
    else:
        spec, made = ModelSpec(name=str(folder)), AutoConfig.from_pretrained(folder)
    return ModelSource(spec, made, tokenizer(manner), FAMILIES[manner])  # type: ignore[arg-type]
