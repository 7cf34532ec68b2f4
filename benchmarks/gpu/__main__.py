"""Tokens a second, peak memory and seconds to the first step on one GPU, beside Trainer + PEFT and TRL.

    python -m benchmarks.gpu [--cases NAME,…] [--rounds 2] [--write]

Models of published shapes with random weights: nothing is fetched. The contenders take turns in one run, every second
round in the opposite order; medians are reported. On a machine without a GPU the case `tiny` tries that all of it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adaptkit.artifact.folder import write_json
from benchmarks.gpu.contenders import CONTENDERS, Work
from benchmarks.gpu.worker import MARK
from benchmarks.report import machine, markdown_table, replace_block

RESULTS = Path("benchmarks/results/gpu.json")
DOCUMENT = Path("docs/memory.md")
GIB = 2**30
EVERYBODY = tuple(CONTENDERS)
WITHOUT_OFFLOADING = EVERYBODY[:3]
WITHOUT_TRL = EVERYBODY[:2]
LEAN: dict[str, Any] = {"offload": ("embeddings", "activations")}
CASES: dict[str, tuple[Work, tuple[str, ...]]] = {
    "tiny": (Work("tiny", length=64, steps=2, warm_up=4), WITHOUT_OFFLOADING),
    "8b-lean": (Work("Llama-3.1-8B", **LEAN), EVERYBODY),
    "8b-paged": (Work("Llama-3.1-8B", optimizer="paged-adamw-8bit", **LEAN), EVERYBODY),
    "8b-fast": (Work("Llama-3.1-8B", recompute=False), WITHOUT_OFFLOADING),
    "8b-lora": (Work("Llama-3.1-8B", strategy="lora"), WITHOUT_OFFLOADING),
    "qwen3-8b": (Work("Qwen3-8B", **LEAN), EVERYBODY),
    "1b-full": (Work("Llama-3.2-1B", strategy="full"), WITHOUT_OFFLOADING),
    "3b-lora": (Work("Llama-3.2-3B", strategy="lora"), WITHOUT_OFFLOADING),
    "70b": (Work("Llama-3.3-70B", rows=1, steps=2, warm_up=5, **LEAN), ("adaptkit",)),
    "modernbert": (Work("ModernBERT-large", strategy="lora", rows=8, length=512, recompute=False), WITHOUT_TRL),
    "t5-3b": (Work("T5-3B", strategy="lora", rows=4, length=512), WITHOUT_TRL),
}


def main(arguments: list[str]) -> None:
    """Measures, prints the table, and with --write puts it into docs/memory.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--cases", default="tiny", help=f"of {', '.join(CASES)}; separated by commas")
    parser.add_argument("--rounds", type=int, default=2, help="times that each contender trains each case")
    parser.add_argument("--steps", type=int, help="that are timed, in place of the case's own")
    parser.add_argument("--contenders", default=",".join(EVERYBODY), help="separated by commas")
    parser.add_argument("--write", action="store_true", help=f"replace the table in {DOCUMENT}")
    parser.add_argument("--output", type=Path, help="where the figures go as JSON, after every case")
    options = parser.parse_args(arguments)
    names, allowed = options.cases.split(","), options.contenders.split(",")
    if unknown := sorted({*names} - CASES.keys()) or sorted({*allowed} - CONTENDERS.keys()):
        parser.error(f"unknown: {', '.join(unknown)}")
    workers = {name: Worker(name) for name in allowed}
    facts = {
        "date": date.today().isoformat(),
        "machine": _machine(),
        "command": "python -m benchmarks.gpu " + " ".join(arguments),
    }
    measured: dict[str, Any] = {}
    for name in names:
        work, wanted = CASES[name]
        if options.steps:
            work = Work(**{**asdict(work), "steps": options.steps})
        measured[name] = {
            "work": asdict(work),
            "figures": _case(work, [workers[one] for one in wanted if one in workers], options.rounds),
        }
        print(f"{name}\n{table({name: measured[name]})}\n", flush=True)
        if options.output:
            write_json(options.output, {**facts, "cases": measured})
    for worker in workers.values():
        worker.close()
    if options.write:
        write_results(facts, measured)


def write_results(facts: dict[str, str], measured: dict[str, Any]) -> None:
    """Puts figures into the results and the document."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))["cases"] if RESULTS.is_file() else {}
    cases = {name: case for name, case in {**kept, **measured}.items()}
    write_json(RESULTS, {**facts, "cases": cases})
    replace_block("gpu", f"{table(cases)}\n\n{facts['machine']}; `{facts['command']}`.", DOCUMENT)


class Worker:
    """A process with a contender in it.

    Args:
        contender: Its name.
    """

    def __init__(self, contender: str) -> None:
        self.contender = contender
        command = [sys.executable, "-m", "benchmarks.gpu.worker", contender]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
        )
        self._ready = False

    def figures(self, work: Work) -> dict[str, Any]:
        """Lets it do the work."""
        if not self._ready:
            self._read()
            self._ready = True
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(work)) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return answer
        return {"error": f"the process ended with {self._process.wait()}"}

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _case(work: Work, workers: Sequence[Worker], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Lets all contenders do the same work in turn."""
    figures: dict[str, list[dict[str, Any]]] = {worker.contender: [] for worker in workers}
    for number in range(rounds):
        for worker in workers if number % 2 == 0 else reversed(workers):
            figures[worker.contender].append(worker.figures(work))
    return figures


def table(cases: dict[str, Any]) -> str:
    """Returns a table, one line a contender."""
    header = ["", "strategy", "tokens/s", "adaptkit is", "peak GiB", "reserved GiB", "first step, s"]
    rows = []
    for name, case in cases.items():
        own = _medians(case["figures"].get("adaptkit", []))
        for contender, figures in case["figures"].items():
            medians = _medians(figures)
            label = f"{case['work']['shape']} ({name}), {contender}"
            if medians is None:
                rows.append([label, case["work"]["strategy"], figures[-1]["error"][:60], "", "", "", ""])
                continue
            ratio = f"{own['tokens_per_second'] / medians['tokens_per_second']:.2f}x" if own else ""
            memory = [f"{medians[key] / GIB:.2f}" for key in ("peak_bytes", "reserved_bytes")]
            speed = f"{medians['tokens_per_second']:,.0f}"
            rows.append([label, case["work"]["strategy"], speed, ratio, *memory, f"{medians['first_step']:.1f}"])
    return markdown_table(header, rows)


def _medians(figures: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    good = [one for one in figures if not one.get("error")]
    if not good:
        return None
    return {key: statistics.median(one[key] for one in good) for key in good[0] if key != "error"}


def _machine() -> str:
    """Returns the GPU and the versions in one line."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = []
    for library in ("bitsandbytes", "trl", "liger-kernel"):
        try:
            versions.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            versions.append(f"no {library}")
    return f"{gpu}; {machine()}, {', '.join(versions)}"


if __name__ == "__main__":
    main(sys.argv[1:])
