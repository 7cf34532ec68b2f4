"""How long a plan of a large shape takes, and how much memory.

    python -m benchmarks planning [--shape Llama-3.3-70B] [--strategies full,lora,qlora,prefix-tuning]

From the config alone, for a GPU that need not be here, 2 x 2,048 tokens a pass. The goals, for a 70B shape: 5 seconds,
10 with `--exact`, and 1 GiB. The first plan pays for the imports of the libraries.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from adaptkit.memory.planner import Planner
from adaptkit.models.base.tokenizers import train_tokenizer
from adaptkit.planning import plan_run
from adaptkit.recipe import Recipe, TokenizerTraining, parse_recipe
from adaptkit.registry import load_registry
from adaptkit.runner import check, choose
from adaptkit.testing.rows import TEXT
from benchmarks.gpu.shapes import SHAPES, make_config
from benchmarks.report import machine

LENGTH, ROWS = 2048, 2
SECONDS, EXACT_SECONDS, MOST_GIB = 5, 10, 1
GPU_BYTES = 48 * 2**30


def main(arguments: list[str]) -> None:
    """Plans, and prints what it took; the exit code says whether the goals were met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks planning")
    parser.add_argument(
        "--shape", default="Llama-3.3-70B", choices=[n for n, s in SHAPES.items() if s.kind == "causal"]
    )
    parser.add_argument("--strategies", default="full,lora,qlora,prefix-tuning", help="separated by commas")
    options = parser.parse_args(arguments)
    late = []
    with tempfile.TemporaryDirectory(prefix="adaptkit-planning-") as folder:
        base = _base(options.shape, Path(folder))
        for strategy in options.strategies.split(","):
            for exact in (False, True):
                seconds, plan = _timed(_recipe(base, strategy), exact=exact)
                late.append(seconds > (EXACT_SECONDS if exact else SECONDS))
                how = ", exact" if exact else ""
                print(f"{strategy}{how}: {seconds:.1f} s, peak {plan.peak / 2**30:.1f} GiB", flush=True)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{resident:.2f} GiB resident at most, imports included; {machine()}")
    raise SystemExit(1 if any(late) or resident > MOST_GIB else 0)


def _timed(recipe: Recipe, *, exact: bool) -> tuple[float, Any]:
    """Returns the seconds that a plan takes, without reading the rows, and the plan."""
    registry = load_registry()
    strategy, task = choose(recipe, registry)
    planner = Planner(registry, check(recipe, strategy, task, registry), torch.device("cuda"), GPU_BYTES, exact)
    planner.prepared(recipe, strategy)
    started = perf_counter()
    planned = plan_run(recipe, planner)
    return perf_counter() - started, planned.plan


def _base(shape: str, folder: Path) -> Path:
    """Writes a base without weights, and rows that fill its passes."""
    config = make_config(SHAPES[shape])
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
    config.save_pretrained(folder)
    train_tokenizer(lambda: [TEXT], TokenizerTraining(vocab_size=480), "decoder").save_pretrained(folder)
    row = json.dumps({"text": f"{TEXT} " * 200}) + "\n"
    (folder / "rows.jsonl").write_text(row * ROWS, encoding="utf-8")
    return folder


def _recipe(base: Path, strategy: str) -> Recipe:
    return parse_recipe(
        {
            "model": str(base),
            "task": "causal-lm",
            "data": {"train": str(base / "rows.jsonl"), "max_length": LENGTH},
            "strategy": strategy,
            "training": {"effective_batch": ROWS, "micro_batch_tokens": ROWS * LENGTH, "max_steps": 3}
            | {"learning_rate": 1e-4, "gradient_checkpointing": True, "offload": []},
            "output": str(base / "run"),
        },
        resolver=load_registry(),
    )
