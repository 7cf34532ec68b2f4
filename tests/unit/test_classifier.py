"""Pooling reads real tokens only, and a base says how it was pooled when it was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import texts
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertForSequenceClassification, PegasusConfig

from adaptkit.errors import ModelError
from adaptkit.models.base.source import open_source
from adaptkit.models.heads.classifier import PooledClassifier, default_pooling, load_classifier, trained_pooling
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
        logits: Tensor = model(input_ids=torch.zeros(2, 3, dtype=torch.int64), attention_mask=mask).logits
    return logits


@pytest.mark.parametrize(("pooling", "first"), [("mean", [3.0, 5.0]), ("cls", [1.0, 2.0]), ("last", [5.0, 9.0])])
def test_padding_is_not_pooled(pooling: str, first: list[float]) -> None:
    torch.testing.assert_close(pooled(pooling), torch.tensor([first, [7.0, 8.0]]))


def test_the_last_token_is_found_behind_padding_on_the_left() -> None:
    assert pooled("last", torch.tensor([[0, 1, 1], [0, 0, 1]]))[0].tolist() == [5.0, 9.0]


def test_dropout_is_in_front_of_the_head_and_off_in_eval_mode() -> None:
    model = PooledClassifier(Fixed(), "mean", num_labels=2, dropout=0.5)
    batch = {"input_ids": torch.zeros(2, 3, dtype=torch.int64), "attention_mask": MASK}
    torch.manual_seed(0)
    assert any(not torch.equal(model(**batch).logits, model(**batch).logits) for _ in range(20))
    model.eval()
    assert torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (None, None),
        ("not json", None),
        ("[]", None),
        ({}, None),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_max_tokens": True}, None),
    ],
)
def test_a_sentence_encoder_is_pooled_as_it_was_trained(settings: Any, expected: str | None, tmp_path: Path) -> None:
    if settings is not None:
        (tmp_path / "1_Pooling").mkdir()
        text = settings if isinstance(settings, str) else json.dumps(settings)
        (tmp_path / "1_Pooling" / "config.json").write_text(text, encoding="utf-8")
    assert trained_pooling(str(tmp_path)) == expected


LABELS = ["dull", "fine", "great"]


def load(folder: Path, pooling: Any) -> Any:
    source = open_source(ModelSpec(name=str(folder)))
    return load_classifier(source, numerics=tiny.numerics(), seed=0, labels=LABELS, pooling=pooling, dropout=0.1)


def load_random(manner: str, pooling: Any, seed: int = 0) -> Any:
    source = texts.source(manner)
    return load_classifier(source, numerics=tiny.numerics(), seed=seed, labels=LABELS, pooling=pooling, dropout=0.1)


@pytest.mark.parametrize("pooling", ["auto", "native", "cls", "mean", "last"])
def test_every_pooling_gives_one_vector_of_logits_per_row(pooling: str, tiny_bert: Path) -> None:
    base = load(tiny_bert, pooling)
    rows = ["a very long row of good and bad words", "short"]
    batch = base.tokenizer(rows, padding=True, return_token_type_ids=False, return_tensors="pt")
    assert base.module(**batch).logits.shape == (2, 3)
    assert base.module.config.num_labels == 3
    assert base.fingerprint.startswith("sha256:")


@pytest.mark.parametrize("pooling", ["auto", "native", "mean", "last"])
@pytest.mark.parametrize("manner", texts.FAMILIES)
def test_logits_do_not_depend_on_padding_in_any_family(manner: str, pooling: str) -> None:
    base = load_random(manner, pooling)
    model: Callable[..., Any] = base.module.eval()

    def logits(*rows: str) -> Tensor:
        return model(**base.tokenizer(rows, padding=True, return_token_type_ids=False, return_tensors="pt")).logits

    alone, beside = logits("ding-dong"), logits("ding-dong", "Those are pearls that were his eyes")
    assert base.family == texts.FAMILIES[manner]
    assert beside.shape == (2, 3)
    assert not torch.allclose(beside[0], beside[1])
    torch.testing.assert_close(alone[0], beside[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("manner", texts.FAMILIES)
def test_the_head_is_a_function_of_the_seed_and_all_of_it_is_new(manner: str) -> None:
    def head(seed: int) -> dict[str, Tensor]:
        base = load_random(manner, "auto", seed)
        parameters = dict(base.module.named_parameters())
        new = {name: parameters[name] for name in base.new_parameters}
        assert new
        inside = tuple(f"{module}." for module in base.head_modules)
        assert set(new) == {name for name in parameters if name.startswith(inside)}
        return new

    torch.manual_seed(5)
    first = head(0)
    torch.manual_seed(6)
    again, other = head(0), head(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.fixture(scope="module")
def trained_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a BERT whose head is for `LABELS`."""
    folder = tmp_path_factory.mktemp("trained")
    config = texts.config("bert", id2label=dict(enumerate(LABELS)))
    BertForSequenceClassification(config).save_pretrained(folder)
    texts.tokenizer("bert").save_pretrained(folder)
    return folder


def test_a_head_that_comes_with_the_base_is_kept_for_the_same_labels_alone(trained_head: Path) -> None:
    source = open_source(ModelSpec(name=str(trained_head)))
    saved = load_file(trained_head / "model.safetensors")["classifier.weight"]

    def loaded(*labels: str) -> Any:
        return load_classifier(source, numerics=tiny.numerics(), seed=0, labels=labels, pooling="auto", dropout=0.0)

    same, others, fewer = loaded(*LABELS), loaded("a", "b", "c"), loaded("a", "b")
    assert same.new_parameters == ()
    assert torch.equal(same.module.classifier.weight, saved)
    assert set(others.new_parameters) == set(fewer.new_parameters) == {"classifier.weight", "classifier.bias"}
    assert not torch.equal(others.module.classifier.weight, saved)
    assert fewer.module.classifier.out_features == 2


def test_a_head_for_other_labels_that_would_be_quantised_is_refused(trained_head: Path) -> None:
    source = open_source(ModelSpec(name=str(trained_head)))
    with pytest.raises(ModelError, match="head for other labels, which is stored as nf4"):
        load_classifier(
            source, numerics=tiny.numerics("nf4"), seed=0, labels=["a", "b", "c"], pooling="auto", dropout=0.0
        )


def test_an_encoder_decoder_is_pooled_over_its_encoder_alone() -> None:
    base = load_random("t5", "auto")
    assert base.module.pooling == "mean"
    assert not any("decoder" in name or "EncDec" in name for name, _ in base.module.named_parameters())
    assert base.module.backbone.supports_gradient_checkpointing


def test_an_architecture_without_a_classification_model_is_pooled_instead() -> None:
    subject = replace(texts.source("t5"), config=PegasusConfig(vocab_size=340, d_model=16), family="encoder-decoder")
    assert default_pooling(subject) == "mean"
    with pytest.raises(ModelError, match="no classification model for 'pegasus'") as caught:
        load_classifier(subject, numerics=tiny.numerics(), seed=0, labels=LABELS, pooling="native", dropout=0.0)
    assert "mean" in str(caught.value.problems[0].allowed)
