"""Run the benchmarks and print one JSON line per figure: name, value, low, high, goal, holds."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator

from benchmarks import merge, overhead, racing, reading
from benchmarks.figure import Figure

BENCHMARKS: dict[str, Callable[[], Iterator[Figure]]] = {
    "reading": reading.figures, "merge": merge.figures, "racing": racing.figures,
    "overhead": overhead.figures,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="run this one only")
    asked = parser.parse_args()
    held = True
    for name, figures in BENCHMARKS.items():
        if asked.only in (None, name):
            for figure in figures():
                print(json.dumps(figure.to_json()), flush=True)
                held = held and figure.holds
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
