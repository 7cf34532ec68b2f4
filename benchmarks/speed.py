"""Tokens per second of `lora` on the movie reviews, beside a bare PyTorch loop and Hugging Face's Trainer.

    python -m benchmarks speed [--rows 5120] [--rounds 8] [--write]

The rows are cut into as many blocks as there are rounds. In each round every contender trains the same
block in turn, in one process, every second round in the opposite order; a round thus gives one ratio for
each pair, and the median over the rounds is reported, since the machine may be busy for a while but hardly
for half of the rounds. Counted are the real tokens of the rows, so that padding helps nobody, over the
seconds of training: not loading, not tokenising, not building a Trainer. Each contender first trains two
steps that are not counted. The goals: at least 0.95 of the bare loop, at least twice Trainer at its default
batching. The floor, in `benchmarks.floor`, is what the multiplications alone would take.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from adaptkit.artifact.folder import write_json
from benchmarks.contenders import Adaptkit, BareLoop, Contender, HFTrainer, Workload, make_workload
from benchmarks.floor import matmul_speed, training_flops
from benchmarks.report import machine, markdown_table, replace_block

RESULTS = Path("benchmarks/results/speed.json")
EFFECTIVE_BATCH = 32
WARM_UP_STEPS = 2
GOALS = {"bare PyTorch loop": 0.95, "HF Trainer + PEFT, its default batching": 2.0}


@dataclass(frozen=True)
class Figures:
    """One line of the table.

    Attributes:
        name: Of the contender.
        batching: How it cuts an optimizer step into forward passes.
        padding: Share of the tokens in its forward passes that were padding.
        tokens_per_second: Real tokens; in each round.
        ratios: How many times as fast adaptkit was; in each round.
    """

    name: str
    batching: str
    padding: float
    tokens_per_second: list[float]
    ratios: list[float]


@dataclass(frozen=True)
class Measurement:
    """One run of the benchmark.

    Attributes:
        model: Folder of the base.
        rank: Of the LoRA.
        rows: Trained on by each contender.
        steps: Optimizer steps of each contender.
        tokens: Real tokens of the rows.
        flops_per_token: Of the floor.
        matmul_flops: Operations per second of large products, in each round.
        contenders: adaptkit first.
    """

    model: str
    rank: int
    rows: int
    steps: int
    tokens: int
    flops_per_token: float
    matmul_flops: list[float]
    contenders: list[Figures]


def main(arguments: list[str]) -> None:
    """Measures, prints the table, and with --write puts it into the README."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks speed")
    parser.add_argument("--rows", type=int, default=5120, help="training rows, from the first on (default: 5120)")
    parser.add_argument("--rounds", type=int, default=8, help="blocks that the rows are cut into (default: 8)")
    parser.add_argument("--write", action="store_true", help="replace the table in README.md")
    options = parser.parse_args(arguments)
    if not 1 <= options.rounds <= options.rows // EFFECTIVE_BATCH:
        parser.error(f"--rounds must be from 1 to {options.rows // EFFECTIVE_BATCH}: {EFFECTIVE_BATCH} rows a step")
    measurement = measure(make_workload(options.rows, {"training.effective_batch": EFFECTIVE_BATCH}), options.rounds)
    text = f"{table(measurement)}\n\n{caption(measurement)}"
    print(f"\n{text}\n\n{verdict(measurement)}")
    if options.write:
        command = f"python -m benchmarks speed --rows {options.rows} --rounds {options.rounds} --write"
        replace_block("speed", f"{text} {machine()}; `{command}`.")
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        threads = torch.get_num_threads()
        facts = {"date": date.today().isoformat(), "machine": machine(), "threads": threads, "command": command}
        write_json(RESULTS, {**facts, **asdict(measurement)})


def measure(work: Workload, rounds: int) -> Measurement:
    """Lets all contenders train the same blocks in turn."""
    whole = work.recipe.training.effective_batch
    contenders: list[Contender] = [Adaptkit(work), BareLoop(work), HFTrainer(work, 8), HFTrainer(work, whole)]
    for contender in contenders:
        contender.train(range(WARM_UP_STEPS))
        contender.padded_tokens = 0
    size = work.job.total_steps // rounds
    blocks = [range(number * size, (number + 1) * size) for number in range(rounds)]
    tokens = [sum(len(row["input_ids"]) for row in work.rows(block)) for block in blocks]
    speeds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    matmuls = []
    for number, block in enumerate(blocks):
        matmuls.append(matmul_speed(work.job.accelerator.device))
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            speeds[contender.name].append(tokens[number] / contender.train(block))
        print(f"round {number + 1} of {rounds}: " + _line(speeds), flush=True)
    rows = work.rows(range(rounds * size))
    options: Any = work.recipe.strategy
    flops = training_flops(work.job.model.config, options.r, (len(row["input_ids"]) for row in rows))
    return Measurement(
        model=work.recipe.model.name,
        rank=options.r,
        rows=len(rows),
        steps=rounds * size,
        tokens=sum(tokens),
        flops_per_token=flops / sum(tokens),
        matmul_flops=matmuls,
        contenders=[_figures(contender, speeds, sum(tokens)) for contender in contenders],
    )


def table(measurement: Measurement) -> str:
    """Returns the table: the floor, then the contenders."""
    fastest = [flops / measurement.flops_per_token for flops in measurement.matmul_flops]
    own = measurement.contenders[0].tokens_per_second
    ratio = _median([mine / limit for mine, limit in zip(own, fastest, strict=True)])
    rows = [["floor: the multiplications alone", "", "0 %", *_speed(fastest, measurement), f"{ratio:.2f}x"]]
    for one in measurement.contenders:
        padding = f"{100 * one.padding:.0f} %"
        speed = _speed(one.tokens_per_second, measurement)
        rows.append([one.name, one.batching, padding, *speed, f"{_median(one.ratios):.2f}x"])
    return markdown_table(["", "a forward pass takes", "padding", "tokens/s", "GFLOP/s", "adaptkit is"], rows)


def caption(measurement: Measurement) -> str:
    """Returns what the table shows, in words."""
    return (
        f"LoRA (r {measurement.rank}, all linear layers) on {measurement.model}, fp32: {measurement.rows:,} rows, "
        f"{measurement.tokens:,} tokens, {measurement.steps} optimizer steps of "
        f"{measurement.rows // measurement.steps} rows for each; medians of {len(measurement.matmul_flops)} "
        f"alternated rounds. GFLOP/s counts the floor's {measurement.flops_per_token / 1e6:.0f} MFLOP a token."
    )


def verdict(measurement: Measurement) -> str:
    """Returns whether the goals are met, and how much the rounds differ."""
    lines = []
    for one in measurement.contenders:
        goal = GOALS.get(one.name)
        if goal is not None:
            ratio = _median(one.ratios)
            outcome = "met" if ratio >= goal else "MISSED"
            spread = f"rounds from {min(one.ratios):.2f} to {max(one.ratios):.2f}"
            lines.append(f"{one.name}: {ratio:.3f}x ({spread}); goal {goal}x: {outcome}")
    return "\n".join(lines)


def _figures(contender: Contender, speeds: dict[str, list[float]], tokens: int) -> Figures:
    own = speeds[contender.name]
    ratios = [mine / theirs for mine, theirs in zip(speeds[Adaptkit.name], own, strict=True)]
    return Figures(contender.name, contender.batching, 1 - tokens / contender.padded_tokens, own, ratios)


def _speed(tokens_per_second: Sequence[float], measurement: Measurement) -> list[str]:
    speed = _median(tokens_per_second)
    return [f"{speed:,.0f}", f"{speed * measurement.flops_per_token / 1e9:.0f}"]


def _line(speeds: dict[str, list[float]]) -> str:
    return "; ".join(f"{name} {figures[-1]:,.0f}" for name, figures in speeds.items()) + " tokens/s"


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))
