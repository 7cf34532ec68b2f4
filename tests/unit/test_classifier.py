"""Pooling reads real tokens only, and a base says how it was pooled when it was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptkit.errors import ModelError
from adaptkit.models.classifier import PooledClassifier, load_classifier, trained_pooling
from adaptkit.recipe import ModelSpec

# (2 rows, 3 tokens, 2 features); the second row has one real token.
HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]], [[7.0, 8.0], [99.0, 99.0], [99.0, 99.0]]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])


class Fixed(nn.Module):
    """A backbone that always gives the same features."""

    config = SimpleNamespace(hidden_size=2)

    def forward(self, **inputs: Any) -> Any:
        return SimpleNamespace(last_hidden_state=HIDDEN)


def pooled(pooling: Any, mask: Tensor = MASK) -> Tensor:
    model = PooledClassifier(Fixed(), pooling, num_labels=2, dropout=0.5).eval()
    with torch.no_grad():
        model.classifier.weight.copy_(torch.eye(2))
        logits: Tensor = model(torch.zeros(2, 3, dtype=torch.int64), mask).logits
    return logits


@pytest.mark.parametrize(("pooling", "first"), [("mean", [3.0, 5.0]), ("cls", [1.0, 2.0]), ("last", [5.0, 9.0])])
def test_padding_is_not_pooled(pooling: str, first: list[float]) -> None:
    torch.testing.assert_close(pooled(pooling), torch.tensor([first, [7.0, 8.0]]))


def test_the_last_token_is_found_behind_padding_on_the_left() -> None:
    assert pooled("last", torch.tensor([[0, 1, 1], [0, 0, 1]]))[0].tolist() == [5.0, 9.0]


def test_dropout_is_in_front_of_the_head_and_off_in_eval_mode() -> None:
    model = PooledClassifier(Fixed(), "mean", num_labels=2, dropout=0.5)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    torch.manual_seed(0)
    assert any(not torch.equal(model(ids, MASK).logits, model(ids, MASK).logits) for _ in range(20))
    model.eval()
    assert torch.equal(model(ids, MASK).logits, model(ids, MASK).logits)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (None, "native"),
        ("not json", "native"),
        ({}, "native"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "native"),
    ],
)
def test_a_sentence_encoder_is_pooled_as_it_was_trained(settings: Any, expected: str, tmp_path: Path) -> None:
    if settings is not None:
        (tmp_path / "1_Pooling").mkdir()
        text = settings if isinstance(settings, str) else json.dumps(settings)
        (tmp_path / "1_Pooling" / "config.json").write_text(text, encoding="utf-8")
    assert trained_pooling(str(tmp_path)) == expected


def load(folder: Path, pooling: Any) -> Any:
    labels = ["dull", "fine", "great"]
    return load_classifier(
        ModelSpec(name=str(folder)), precision="fp32", seed=0, labels=labels, pooling=pooling, dropout=0.1
    )


@pytest.mark.parametrize("pooling", ["auto", "native", "cls", "mean", "last"])
def test_every_pooling_gives_one_vector_of_logits_per_row(pooling: str, tiny_bert: Path) -> None:
    base = load(tiny_bert, pooling)
    texts = ["a very long row of good and bad words", "short"]
    batch = base.tokenizer(texts, padding=True, return_token_type_ids=False, return_tensors="pt")
    assert base.module(**batch).logits.shape == (2, 3)
    assert base.module.config.num_labels == 3
    assert base.fingerprint.startswith("sha256:")


@pytest.mark.parametrize("pooling", ["native", "mean"])
def test_logits_do_not_depend_on_padding(pooling: str, tiny_bert: Path) -> None:
    base = load(tiny_bert, pooling)
    model: Callable[..., Any] = base.module.eval()
    alone = base.tokenizer(["short"], return_token_type_ids=False, return_tensors="pt")
    beside = base.tokenizer(
        ["short", "a very long row of good words"], padding=True, return_token_type_ids=False, return_tensors="pt"
    )
    torch.testing.assert_close(model(**alone).logits[0], model(**beside).logits[0], rtol=0, atol=1e-5)


def test_an_encoder_decoder_is_refused_with_what_works(tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is an encoder-decoder"):
        load(tmp_path, "mean")
