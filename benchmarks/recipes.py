"""What every recipe gives: run as its first lines say, measured on rows that it has not seen.

    python -m benchmarks recipes [NAME …] [--anew] [--write]

Finished runs are kept in runs/ and are not run again, so that it can be stopped and continued; neither is a variant
whose figures are recorded, unless with --anew. With --write the tables of the recipes that were named go into
recipes/README.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adaptkit.artifact.folder import RunFolder, write_json
from adaptkit.artifact.run import load
from adaptkit.comparison import Result, measure, run_apart
from adaptkit.registry import load_registry
from adaptkit.runner import check_begun_with, resolve
from benchmarks.baselines import tfidf_accuracy
from benchmarks.report import machine, markdown_table, replace_block

DOCUMENT = Path("recipes/README.md")
RESULTS = Path("benchmarks/results/recipes.json")
HIDDEN = ("loss", "matthews_correlation", "macro_f1")  # they tell nothing here that another figure does not


@dataclass(frozen=True)
class Variant:
    """One way to run a recipe.

    Attributes:
        overrides: ``key=value``.
        suffix: Of the output folder that the recipe names.
    """

    overrides: tuple[str, ...] = ()
    suffix: str = ""


@dataclass(frozen=True)
class Measured:
    """What a variant gave.

    Attributes:
        recipe: Name of the file.
        variant: Its overrides, or what was measured in place of a run.
        result: Figures of the finished run; of a base before the training only the metrics.
    """

    recipe: str
    variant: str
    result: Result | None
    metrics: dict[str, float]


PLAIN = Variant()


def strategies(*names: str, **rates: str) -> tuple[Variant, ...]:
    """Returns a variant a strategy, with its own defaults, or with a learning rate."""
    own = [Variant((f"strategy={name}",), f"-{name}") for name in names]
    named = [(name.replace("_", "-"), f"training.learning_rate={rate}") for name, rate in rates.items()]
    return (*own, *(Variant((f"strategy={name}", rate), f"-{name}") for name, rate in named))


SCRATCH = Variant(("model.init=random",), "-scratch")
VARIANTS: dict[str, tuple[Variant, ...]] = {
    "spam": (PLAIN,),
    "pos-tagging": (PLAIN, *strategies("full", "qlora", "last-layers", "prefix-tuning", "linear-probe")),
    "shakespeare": (
        PLAIN,
        *strategies(qlora="2e-3", full="1e-4", last_layers="2e-4"),
        *strategies("prefix-tuning"),
    ),
    "chitchat": (PLAIN,),
    "pretrain-bert": (PLAIN,),
    "finetune-bert": (
        PLAIN,
        SCRATCH,
        Variant(("model.init=random", "training.learning_rate=1e-3"), "-scratch-faster"),
        Variant(("strategy=linear-probe",), "-probe"),
        Variant(("strategy=linear-probe", "model.init=random"), "-probe-scratch"),
    ),
    "pretrain-gpt": (PLAIN,),
    "pretrain-t5": (PLAIN,),
    "translate": (PLAIN, SCRATCH),
    "pronounce": (
        PLAIN,
        Variant(("model={name: runs/pretrain-t5}",), "-pretrained"),
        Variant(("model={name: runs/pretrain-t5, init: random}",), "-scratch"),
    ),
}
WITH_BASE = ("shakespeare", "chitchat")  # a language model can do the task before the training
BASELINES = {"spam": Path("assets/spam")}  # counted words can do the task


def main(arguments: list[str]) -> None:
    """Runs, prints the tables, and with --write puts them into recipes/README.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks recipes")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(VARIANTS)}; default: all")
    parser.add_argument("--anew", action="store_true", help=f"also what {RESULTS} has")
    parser.add_argument("--write", action="store_true", help=f"replace the tables in {DOCUMENT}")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - VARIANTS.keys()):
        parser.error(f"unknown: {', '.join(unknown)}")
    for name in options.names or VARIANTS:
        measured = list(run_recipe(name, {} if options.anew else recorded(name)))
        table = markdown_table(*rows(measured))
        print(f"{name}\n{table}\n")
        if options.write:
            kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
            kept[name] = {"machine": machine(), "runs": [asdict(one) for one in measured]}
            write_json(RESULTS, kept)
            replace_block(name, f"{table}\n\n{machine()}; `python -m benchmarks recipes {name} --write`.", DOCUMENT)


def recorded(name: str) -> dict[str, Measured]:
    """Returns what was measured of a recipe earlier, by variant."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    runs = [(run, run.pop("result")) for run in kept.get(name, {"runs": []})["runs"]]
    return {run["variant"]: Measured(result=Result(**result) if result else None, **run) for run, result in runs}


def run_recipe(name: str, known: dict[str, Measured]) -> Iterator[Measured]:
    """Yields what each variant of a recipe gives, in their order; the base, where it can be asked, first."""
    if name in BASELINES:
        yield Measured(name, "TF-IDF + logistic regression", None, {"accuracy": tfidf_accuracy(BASELINES[name])})
    file = f"recipes/{name}.yaml"
    registry = load_registry()
    for variant in VARIANTS[name]:
        recipe = resolve(file, variant.overrides, registry)
        folder = RunFolder(Path(output := recipe.output + variant.suffix))
        base = f"base of `{recipe.strategy.name}`, before"
        words = f"`{' '.join(variant.overrides) or recipe.strategy.name}`"
        if words in known and not folder.results.is_file():
            yield from (known[one] for one in (base, words) if one in known)
            continue
        if folder.results.is_file():
            check_begun_with(folder, resolve(file, (*variant.overrides, f"output={output}"), registry), registry)
        else:
            print(f"running {name}{variant.suffix}", flush=True)
            run_apart(file, [*variant.overrides, f"output={output}"], folder)
        if name in WITH_BASE:
            yield Measured(name, base, None, _before(folder))
        result = measure(folder)
        yield Measured(name, words, result, result.metrics)


def rows(measured: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Returns a table: a header, and one row a variant."""
    names = [name for name in measured[-1].metrics if name not in HIDDEN] or ["loss"]
    header = ["", *(name.replace("_", " ") for name in names), "trainable", "peak memory", "seconds"]
    return header, [[one.variant, *(_figure(one.metrics[name]) for name in names), *_cost(one)] for one in measured]


def _before(folder: RunFolder) -> dict[str, float]:
    """Returns the figures of the base alone, measured once and kept beside the run."""
    file = folder.path / "before.json"
    if not file.is_file():
        write_json(file, load(folder.path).unadapted().evaluate())
    figures: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
    return figures


def _figure(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _cost(one: Measured) -> list[str]:
    if one.result is None:
        return ["", "", ""]
    memory = f"{one.result.peak_memory_bytes / 2**30:.2f} GiB"
    return [f"{one.result.trainable_parameters:,}", memory, f"{one.result.seconds:.0f}"]
