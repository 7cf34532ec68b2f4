"""The tokenizer of a base: the model's own, another one, or one that is trained on the rows of the run.

What is trained is what the family is used to: WordPiece for encoders (BERT, arXiv:1810.04805), byte-level BPE
for the others (GPT-2), with the end of the text and a hundred sentinels (T5, arXiv:1910.10683) where an encoder
reads and a decoder writes.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.errors import ModelError
from adaptkit.models.base.family import read_json
from adaptkit.models.base.library import as_model_error
from adaptkit.recipe import ModelSpec, TokenizerTraining

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from adaptkit.strategy import Family

Texts = Callable[[], Iterable[str]]

BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
GPT_TOKENS = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
T5_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>"}
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))
ROLES = ("pad", "bos", "eos", "unk", "cls", "sep", "mask")
# Of the characters that WordPiece starts from, rarer ones are unknown; as the trainer's own default.
ALPHABET = 1000
BYTES = 256


def load_tokenizer(spec: ModelSpec) -> Any:
    """Returns the tokenizer that a recipe names, or the model's own; fast, with a padding token.

    Raises:
        ModelError: There is none, or one that can neither pad nor end a text.
    """
    name = spec.tokenizer if isinstance(spec.tokenizer, str) else spec.name
    with as_model_error(spec, tokenizer=name):
        tokenizer = _tokenizer_class(name).from_pretrained(
            name, revision=spec.revision if name == spec.name else None, trust_remote_code=False
        )
    if not tokenizer.get_vocab().keys() - tokenizer.all_special_tokens:
        raise ModelError(
            f"{name!r} holds no tokenizer: nothing tells into which tokens a text is cut",
            where=name,
            allowed="tokenizer.json, or the vocabulary of a tokenizer, beside the model",
            fix="save the tokenizer into this folder, or name another one that belongs to the model: model.tokenizer",
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has neither a padding nor an end token",
                where=name,
                allowed="a tokenizer with pad_token or eos_token",
                fix="name one of its tokens as pad_token in tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer_class(name: str) -> Any:
    """Returns the class by which a tokenizer is read.

    AutoTokenizer builds that of Qwen and some others anew, with the architecture's own rules. A folder that names
    the plain class holds all of its rules in tokenizer.json, those of a tokenizer trained here among them.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    settings = read_json(Path(name) / "tokenizer_config.json") or {}
    plain = settings.get("tokenizer_class") == PreTrainedTokenizerFast.__name__
    return PreTrainedTokenizerFast if plain else AutoTokenizer


def check_tokenizer(tokenizer: Any, vocab_size: int | None, spec: ModelSpec) -> None:
    """Checks that a tokenizer goes with the weights that will read its tokens.

    Ids that only some texts give are looked at where the rows are tokenized.

    Args:
        tokenizer: With the recipe's new tokens.
        vocab_size: Ids that the model has an embedding for; None: unknown.
        spec: The recipe's section.

    Raises:
        ModelError: A special token has no embedding, or pretrained weights know other tokens by these ids.
    """
    special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    beyond = {token: number for token, number in special if vocab_size is not None and number >= vocab_size}
    used = {getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    beyond = {token: number for token, number in beyond.items() if number in used}
    if beyond:
        named = ", ".join(f"{token!r} ({number})" for token, number in beyond.items())
        raise ModelError(
            f"special tokens of the tokenizer have ids for which the model has no embedding: {named}",
            where=spec.tokenizer if isinstance(spec.tokenizer, str) else spec.name,
            allowed=f"ids below {vocab_size}",
            fix=f"give them rows: model.new_tokens={list(beyond)}; or use the tokenizer that belongs to the model",
        )
    if spec.init == "pretrained" and spec.tokenizer is not None:
        _check_same_ids(tokenizer, spec)


def _check_same_ids(tokenizer: Any, spec: ModelSpec) -> None:
    """Raises when another tokenizer gives other ids than the model's own for tokens that the weights know."""
    try:
        own = load_tokenizer(spec.model_copy(update={"tokenizer": None})).get_vocab()
    except ModelError:  # The model comes without one.
        return
    vocabulary = tokenizer.get_vocab()
    moved = sorted(token for token, number in own.items() if vocabulary.get(token) != number)
    if moved:
        raise ModelError(
            f"the tokenizer {spec.tokenizer!r} is not one for the weights of {spec.name!r}: {len(moved):,} of their "
            f"{len(own):,} tokens have another id or none, such as {moved[len(moved) // 2]!r}",
            where="model.tokenizer",
            allowed="a tokenizer that has all tokens of the model's own under the same ids",
            fix="leave model.tokenizer out, name added tokens under model.new_tokens, or set model.init to random",
        )


def trained_tokenizer(
    spec: ModelSpec, settings: TokenizerTraining, family: Family, config: Any, texts: Texts | None, folder: Path | None
) -> Any:
    """Returns the run's own tokenizer: from its folder where it has been trained already, else trained now.

    Args:
        spec: The recipe's section.
        settings: Of the training.
        family: Decides the kind.
        config: Of the model that will read the tokens.
        texts: Gives what it learns from; called more than once.
        folder: Where it is kept; None: nowhere.

    Raises:
        ModelError: It is neither there nor can it be trained.
    """
    if folder is None or not folder.is_dir():
        if texts is None:
            raise ModelError(
                "the tokenizer that was trained for the run is missing",
                where=str(folder) if folder else spec.name,
                fix="restore the folder from a copy, or run the recipe again",
            )
        tokenizer = train_tokenizer(texts, settings, family, pairs=getattr(config, "type_vocab_size", 0) > 1)
        if folder is None:
            return tokenizer
        _save(tokenizer, folder)
    # Read again even if it is new, so that a run and its continuation use the very same one.
    return load_tokenizer(spec.model_copy(update={"tokenizer": str(folder)}))


def train_tokenizer(texts: Texts, settings: TokenizerTraining, family: Family, *, pairs: bool = True) -> Any:
    """Returns a tokenizer that is a function of the texts and the settings alone.

    Args:
        texts: Gives the texts; called more than once.
        settings: Size of the vocabulary, capital letters.
        family: Decides the kind.
        pairs: Whether an encoder is told which tokens are those of a second text.

    Raises:
        ModelError: The texts are empty, or the vocabulary is too small.
    """
    from transformers import PreTrainedTokenizerFast

    if not any(text.strip() for text in texts()):
        raise ModelError(
            "there is no text to train a tokenizer on",
            where="model.tokenizer",
            fix="check the columns of the training rows, or name a tokenizer: model.tokenizer=FOLDER",
        )
    kind = {"encoder": _word_piece, "decoder": _gpt, "encoder-decoder": _t5}[family]
    tokenizer, tokens = kind(texts, settings)
    inputs = ["input_ids", *(["token_type_ids"] if family == "encoder" and pairs else []), "attention_mask"]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=inputs, clean_up_tokenization_spaces=False, **tokens
    )
    if family == "encoder-decoder":
        wrapped.add_special_tokens({"extra_special_tokens": list(SENTINELS)})
    return wrapped


def _word_piece(texts: Texts, settings: TokenizerTraining) -> tuple[Tokenizer, dict[str, str]]:
    """Returns WordPiece with BERT's rules and special tokens: ``[CLS] a [SEP]``, ``[CLS] a [SEP] b [SEP]``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = list(BERT_TOKENS.values())
    normalizer = normalizers.BertNormalizer(lowercase=settings.lowercase)
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    alphabet = _alphabet(map(normalizer.normalize_str, texts()), min(ALPHABET, settings.vocab_size // 4))
    # Met in the order of a hash table, the pieces that continue a word would get other ids, and become other merges,
    # in every process; so they are there from the start, in the place where the trainer takes special tokens.
    inner = [f"##{character}" for character in alphabet]
    learner.train_from_iterator(
        texts(),
        trainers.WordPieceTrainer(
            vocab_size=settings.vocab_size,
            special_tokens=special + inner,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        ),
    )
    vocabulary = learner.get_vocab()
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, learner.pre_tokenizer
    tokenizer.add_special_tokens(special)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer, BERT_TOKENS


def _alphabet(texts: Iterable[str], limit: int) -> list[str]:
    """Returns the most frequent characters that are not white space, in an order that is always the same."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    characters = [character for character in counts if not character.isspace()]
    return sorted(sorted(characters, key=lambda character: (-counts[character], character))[:limit])


def _gpt(texts: Texts, settings: TokenizerTraining) -> tuple[Tokenizer, dict[str, str]]:
    """Returns byte-level BPE; a text is not marked, its end can be."""
    return _byte_level(texts, settings, settings.vocab_size, GPT_TOKENS), GPT_TOKENS


def _t5(texts: Texts, settings: TokenizerTraining) -> tuple[Tokenizer, dict[str, str]]:
    """Returns byte-level BPE that ends every text with ``</s>`` and leaves room for the sentinels."""
    from tokenizers import processors

    tokenizer = _byte_level(texts, settings, settings.vocab_size - len(SENTINELS), T5_TOKENS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return tokenizer, T5_TOKENS


def _byte_level(texts: Texts, settings: TokenizerTraining, size: int, tokens: dict[str, str]) -> Tokenizer:
    """Returns byte-level BPE of at most ``size`` entries.

    Raises:
        ModelError: They are too few for the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    least = BYTES + len(tokens)
    if size < least:
        others = settings.vocab_size - size
        raise ModelError(
            f"a vocabulary of {settings.vocab_size} is too small: every byte and special token is an entry of its own",
            where="model.tokenizer.vocab_size",
            allowed=f"{least + others} or more",
            fix="raise it; 4,000 to 8,000 suits a few megabytes of text, 32,000 a few gigabytes",
        )
    tokenizer = Tokenizer(models.BPE())
    if settings.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts(),
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(tokens.values()),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tokenizer


def _save(tokenizer: Any, folder: Path) -> None:
    """Writes a tokenizer's folder, as a whole or not at all."""
    staged = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(staged, ignore_errors=True)
    tokenizer.save_pretrained(staged)
    os.replace(staged, folder)
