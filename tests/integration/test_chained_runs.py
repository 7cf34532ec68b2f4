"""A finished run is the base of the next: pre-training from scratch, fine-tuning, a probe."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModel, AutoTokenizer

import adaptkit
from adaptkit.artifact.merging import base_spec, check_base, plain_model
from adaptkit.artifact.run import Run
from adaptkit.errors import CheckpointError, ModelError
from adaptkit.models.base.source import open_source
from adaptkit.recipe import ModelSpec, parse_recipe
from adaptkit.registry import load_registry

pytestmark = pytest.mark.usefixtures("one_thread")
MakeRun = Callable[..., Run]

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SCRATCH: dict[str, dict[str, Any]] = {
    "masked-lm": {"name": "bert", "config": {**SMALL, "max_position_embeddings": 64}},
    "causal-lm": {"name": "gpt2", "config": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}},
    "span-corruption": {"name": "t5", "config": {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16}},
}
SEQ2SEQ = {"columns": {"source": "text", "target": "label"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Runs one epoch; ``run("name", model, task, strategy)``. A run of that name is there once."""
    folder = tmp_path_factory.mktemp("runs")
    data = tiny.write_data(folder)
    registry = load_registry()

    def make(name: str, model: Any, task: Any, strategy: Any = "full", **more: Any) -> Run:
        output = folder / name
        if not (output / "results.json").is_file():
            values = {"model": model, "task": task, "data": {**data, **more}, "strategy": strategy}
            training = {"effective_batch": 8, "compute": "fp32", "epochs": 1}
            adaptkit.run(parse_recipe({**values, "training": training, "output": str(output)}, resolver=registry))
        return adaptkit.load(output)

    return make


def pretrained(run: MakeRun, task: str) -> Run:
    model = {**SCRATCH[task], "init": "random", "tokenizer": {"vocab_size": 400}}
    return run(f"pretrain-{task}", model, task)


def hidden(model: Any, tokenizer: Any, text: str = "a very good film") -> torch.Tensor:
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.no_grad():
        state: torch.Tensor = model.eval()(input_ids=ids).last_hidden_state
    return state


def test_pre_training_fine_tuning_and_a_probe_chain(run: MakeRun) -> None:
    base = pretrained(run, "masked-lm")
    tuned = run("finetune", str(base.directory), "text-classification")
    probe = run("probe", str(tuned.directory), "text-classification", "linear-probe")
    for finished in (base, tuned, probe):
        assert finished.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    check_base(ModelSpec(name=str(probe.directory)))
    # What one run learned is what the next begins with.
    embedding = "embeddings.word_embeddings.weight"
    begun = AutoModel.from_pretrained(base_spec(tuned.recipe.model).name).get_parameter(embedding)
    assert torch.equal(begun, base.model.bert.get_parameter(embedding))
    assert not torch.equal(begun, tuned.model.bert.get_parameter(embedding))
    assert torch.equal(probe.model.bert.get_parameter(embedding), tuned.model.bert.get_parameter(embedding))
    assert [entry["label"] for entry in probe.predict(["a good film", "a bad film"])]


def test_a_pre_trained_decoder_is_adapted(run: MakeRun) -> None:
    base = pretrained(run, "causal-lm")
    tuned = run("lora-on-gpt", str(base.directory), "causal-lm", "lora")
    twice = run("full-on-lora", str(tuned.directory), "causal-lm")
    assert twice.metrics["eval/perplexity"] < 1.5 * base.metrics["eval/perplexity"]


def test_a_pre_trained_encoder_decoder_learns_to_write(run: MakeRun) -> None:
    base = pretrained(run, "span-corruption")
    tuned = run("write", str(base.directory), "seq2seq", **SEQ2SEQ)
    shared = "shared.weight"
    begun = AutoModel.from_pretrained(base_spec(tuned.recipe.model).name).get_parameter(shared)
    assert torch.equal(begun, base.model.get_parameter(shared))
    assert not torch.equal(begun, tuned.model.get_parameter(shared))


@pytest.mark.parametrize(
    ("strategy", "task"),
    [
        ("full", "text-classification"),
        ({"name": "last-layers", "num_layers": 1}, "text-classification"),
        ({"name": "lora", "r": 4}, {"name": "text-classification", "pooling": "mean"}),
    ],
)
def test_a_plain_model_computes_what_the_run_computes(strategy: Any, task: Any, run: MakeRun, tiny_bert: Path) -> None:
    name = strategy if isinstance(strategy, str) else strategy["name"]
    tokens = ["<drug>"] if name == "lora" else []
    finished = run(f"plain-{name}", {"name": str(tiny_bert), "new_tokens": tokens}, task, strategy)
    folder = plain_model(finished.directory)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backbone = getattr(finished.model, "backbone", None) or finished.model.bert
    text = "a <drug> was good" if tokens else "a film was good"
    torch.testing.assert_close(
        hidden(AutoModel.from_pretrained(folder), tokenizer, text), hidden(backbone, finished.tokenizer, text)
    )
    assert tokenizer.get_vocab() == finished.tokenizer.get_vocab()
    pooled = folder / "1_Pooling" / "config.json"
    if isinstance(task, dict):
        assert json.loads(pooled.read_text(encoding="utf-8"))["pooling_mode_mean_tokens"] is True
    assert pooled.is_file() == isinstance(task, dict)
    config = open_source(ModelSpec(name=str(folder))).config
    assert (config.vocab_size, config.num_labels) == (len(tokenizer), 2)


def test_an_update_trained_on_a_quantised_base_goes_into_the_whole_weights(run: MakeRun, tiny_bert: Path) -> None:
    model = {"name": str(tiny_bert), "precision": "nf4"}
    finished = run("lora-on-nf4", model, "text-classification", {"name": "lora", "r": 4})
    tensors = AutoModel.from_pretrained(plain_model(finished.directory)).state_dict()
    before = AutoModel.from_pretrained(tiny_bert).state_dict()
    query = "encoder.layer.0.attention.self.query.weight"
    assert tensors[query].dtype == before[query].dtype == torch.float32
    assert 0 < (tensors[query] - before[query]).abs().max() < 0.1
    assert torch.equal(tensors["embeddings.word_embeddings.weight"], before["embeddings.word_embeddings.weight"])


def test_a_plain_model_is_made_once_and_again_when_the_run_has_changed(run: MakeRun) -> None:
    folder = pretrained(run, "masked-lm").directory
    weights = plain_model(folder) / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert plain_model(folder) == weights.parent
    assert weights.stat().st_mtime_ns == made
    stamp = weights.parent / "adaptkit.json"
    written = stamp.read_bytes()
    stamp.write_text(json.dumps({"tensors": "of another run"}), encoding="utf-8")
    plain_model(folder)
    assert weights.stat().st_mtime_ns > made
    assert stamp.read_bytes() == written
    assert not list(folder.glob(".tmp-*"))


def test_a_plain_model_that_is_lost_comes_back_as_the_same_base(run: MakeRun) -> None:
    base = pretrained(run, "masked-lm")
    tuned = run("finetune", str(base.directory), "text-classification")
    before = tuned.predict(["a good film"])
    shutil.rmtree(base.directory / "model")
    assert adaptkit.load(tuned.directory).predict(["a good film"]) == before


def test_a_base_that_has_changed_since_is_refused(run: MakeRun) -> None:
    base = pretrained(run, "masked-lm")
    tuned = run("finetune", str(base.directory), "text-classification")
    config = plain_model(base.directory) / "config.json"
    content = config.read_text(encoding="utf-8")
    config.write_text(content.replace('"hidden_act": "gelu"', '"hidden_act": "relu"'), encoding="utf-8")
    try:
        with pytest.raises(CheckpointError, match="is not the one that was adapted"):
            adaptkit.load(tuned.directory).predict(["a good film"])
    finally:
        config.write_text(content, encoding="utf-8")


@pytest.mark.parametrize("strategy", ["prefix-tuning", "qlora"])
def test_what_cannot_become_part_of_the_weights_is_refused_with_what_to_do(
    strategy: str, run: MakeRun, tiny_bert: Path
) -> None:
    options = {"name": strategy, **tiny.STRATEGIES[strategy]}
    finished = run(f"refused-{strategy}", str(tiny_bert), "text-classification", options)
    spec = ModelSpec(name=str(finished.directory))
    for refuse in (check_base, base_spec):
        with pytest.raises(ModelError, match="cannot be the base of another one") as error:
            refuse(spec)
        assert "full, last-layers, linear-probe, lora" in str(error.value)
        assert f"model: {tiny_bert}" in str(error.value)
    assert not (finished.directory / "model").exists()


def test_the_encoder_alone_is_no_base_for_an_encoder_decoder(run: MakeRun) -> None:
    base = pretrained(run, "span-corruption")
    finished = run("encoder-alone", str(base.directory), {"name": "text-classification", "pooling": "mean"})
    with pytest.raises(ModelError, match="has the encoder alone"):
        plain_model(finished.directory)
    assert not list(finished.directory.glob(".tmp-*"))


def test_an_unfinished_run_is_told_as_such(run: MakeRun, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(pretrained(run, "masked-lm").directory, unfinished)
    shutil.rmtree(unfinished / "adapter")
    with pytest.raises(ModelError, match="this run is not finished"):
        check_base(ModelSpec(name=str(unfinished)))


def test_the_config_of_a_run_serves_new_weights(run: MakeRun) -> None:
    base = pretrained(run, "masked-lm")
    model = {"name": str(base.directory), "init": "random"}
    control = run("without-pre-training", model, "text-classification", "linear-probe")
    trained = base.model.bert.embeddings.word_embeddings.weight
    assert control.model.bert.embeddings.word_embeddings.weight.shape == trained.shape
    assert not torch.equal(control.model.bert.embeddings.word_embeddings.weight, trained)


def test_a_run_is_checked_as_a_base_without_torch(run: MakeRun, tmp_path: Path) -> None:
    base = pretrained(run, "causal-lm")
    data = tiny.write_data(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    values = {"model": str(base.directory), "task": "masked-lm", "data": data, "strategy": "full", "output": "runs/x"}
    recipe.write_text(json.dumps(values), encoding="utf-8")
    code = "import sys; from adaptkit.cli.app import main; sys.argv[1:] = ['validate', sys.argv[1]]\ntry: main()\n"
    code += "finally: assert not {'torch', 'transformers'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code, str(recipe)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "does not work with decoder models" in done.stderr
