"""While a base is quantised as it is read, the host holds what it becomes and a little of what it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from adaptkit.testing.bases import BASES, write_base

SIZES = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 4}
LAYERS, VOCABULARY, SHARDS = 32, 480, 6
# Prints, in bytes, by how much the anonymous memory of the process grew, and what the model takes. Imports, and what
# libraries set up when they are first used, are no part of it: another model is loaded before.
PROGRAM = """
import json, sys, threading, time
import bitsandbytes, torch, transformers
from adaptkit.models.base.loading import load_model
from adaptkit.models.precision import Numerics
from adaptkit.models.base.source import open_source
from adaptkit.recipe import ModelSpec

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

def watch():
    while not done.is_set():
        peaks.append(anonymous())
        time.sleep(0.001)

def load(folder):
    source = open_source(ModelSpec(name=folder))
    return load_model(transformers.AutoModelForCausalLM, source, numerics)[0]

first, folder, compute = sys.argv[1:]
numerics = Numerics(torch.device("cpu"), "nf4", compute == "bf16")
load(first)
before, peaks, done = anonymous(), [], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
model = load(folder)
done.set()
thread.join()
size = sum(tensor.nbytes for tensor in model.state_dict().values())
print(json.dumps([max(peaks) - before, size]))
"""


def write_sharded(folder: Path, dtype: torch.dtype) -> int:
    """Writes a Llama of 94 million parameters in several files; returns the bytes of the largest."""
    config = AutoConfig.for_model("llama", **SIZES, num_hidden_layers=LAYERS, vocab_size=VOCABULARY)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    size = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(folder, max_shard_size=size // SHARDS)
    files = list(folder.glob("*.safetensors"))
    assert len(files) >= SHARDS
    return max(file.stat().st_size for file in files)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process as Linux shows it")
@pytest.mark.parametrize(("stored", "compute"), [(torch.float32, "bf16"), (torch.bfloat16, "fp32")])
def test_quantising_never_holds_the_whole_model(stored: torch.dtype, compute: str, tmp_path: Path) -> None:
    write_base(tmp_path / "first", BASES["llama"])
    shard = write_sharded(tmp_path / "base", stored)
    for file in (tmp_path / "first").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "base")
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "first"), str(tmp_path / "base"), compute]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    growth, size = json.loads(result.stdout.splitlines()[-1])
    assert growth <= 1.3 * size + shard
