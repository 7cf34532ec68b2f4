"""The family of a model, from its config or its name alone and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adaptkit.models.base.family import architectures, family_of, local_family

FAMILIES = {
    "encoder": ["bert", "roberta", "distilbert", "modernbert", "electra", "deberta-v2", "albert", "xlm-roberta"],
    "decoder": ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "olmo2", "gpt_neox"],
    "encoder-decoder": ["t5", "bart", "mt5", "pegasus", "marian"],
}
EVERY_ARCHITECTURE = pytest.mark.parametrize(
    ("family", "model_type"), [(family, name) for family, names in FAMILIES.items() for name in names]
)


@EVERY_ARCHITECTURE
def test_the_family_of_an_architecture_in_a_folder(family: str, model_type: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    assert local_family(str(tmp_path)) == family


@EVERY_ARCHITECTURE
def test_the_family_of_an_architecture_by_its_name(family: str, model_type: str) -> None:
    assert model_type in architectures()
    assert local_family(model_type) == family


def test_what_transformers_does_not_know_is_an_encoder_unless_it_says_otherwise() -> None:
    assert family_of({"model_type": "unheard-of"}) == "encoder"
    assert family_of({}) == "encoder"
    assert family_of({"model_type": "unheard-of", "is_encoder_decoder": True}) == "encoder-decoder"


@pytest.mark.parametrize("content", [None, "", "{", "[]", "3", json.dumps("bert")])
def test_no_readable_config_no_family(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    assert local_family(str(tmp_path)) is None
    assert local_family("someone/a-model-of-the-hub") is None
    assert local_family("unheard-of") is None


@pytest.mark.parametrize(("record", "family"), [({"base": {"family": "decoder"}}, "decoder"), ({"base": 3}, None)])
def test_a_finished_run_is_of_the_family_of_its_base(record: object, family: str | None, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adaptkit.json").write_text(json.dumps(record), encoding="utf-8")
    assert local_family(str(tmp_path)) == family


def test_a_family_is_told_without_torch() -> None:
    code = "import sys; from adaptkit.models.base.family import local_family; print(local_family('gpt2'))"
    check = "; assert not {'torch', 'transformers'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "decoder"
