"""The benchmarks by name.

    python -m benchmarks speed [--rows N] [--rounds K] [--write]
    python -m benchmarks movie-reviews [--seeds 0,1,2] [--write]
    python -m benchmarks prefix-coverage [--write]
    python -m benchmarks matrix [--write]
    python -m benchmarks conformance [--write]
    python -m benchmarks memory [--only TEXT] [--write]
    python -m benchmarks planning [--shape NAME] [--strategies NAME,…]
    python -m benchmarks recipes [NAME …] [--write]

Without a name it measures the speed, which takes minutes; the table of the movie reviews takes hours.
"""

from __future__ import annotations

import importlib
import sys

from adaptkit.cli.quiet import quiet_libraries
from adaptkit.errors import AdaptkitError

MODULES = {
    "speed": "benchmarks.speed",
    "movie-reviews": "benchmarks.movie_reviews",
    "prefix-coverage": "benchmarks.prefix_coverage",
    "matrix": "benchmarks.matrix",
    "conformance": "benchmarks.conformance",
    "memory": "benchmarks.memory",
    "planning": "benchmarks.planning",
    "recipes": "benchmarks.recipes",
}


def main(arguments: list[str]) -> None:
    """Runs the benchmark that the first argument names."""
    if arguments and arguments[0] not in MODULES:
        wanted = arguments[0] in ("-h", "--help")
        print(__doc__, file=sys.stdout if wanted else sys.stderr)
        raise SystemExit(0 if wanted else 2)
    quiet_libraries()
    name = arguments[0] if arguments else "speed"
    try:
        importlib.import_module(MODULES[name]).main(arguments[1:])
    except AdaptkitError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    if not arguments:
        print("\nThe strategies on the movie reviews (hours): python -m benchmarks movie-reviews")


if __name__ == "__main__":
    main(sys.argv[1:])
