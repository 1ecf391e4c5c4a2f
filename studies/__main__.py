"""Run a study at its full length and write its page: `python -m studies NAME`.

A study of several seeds writes its page anew after each of them. A shortened one is printed only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from studies import akiba_page, data_page, exploits_page, gate_page, reward_page, search_page, tuner_page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "studies"
PAGES = {
    "search": search_page, "akiba": akiba_page, "data": data_page, "reward": reward_page, "exploits": exploits_page,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="studies", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True)
    gate = names.add_parser("gate", help="the gate beside other rules")
    gate.add_argument("--lives", type=int, default=None, help="lives in each world, where fewer shall do")
    for name, module in PAGES.items():
        study = names.add_parser(name, help=module.pages.__doc__)
        study.add_argument("--seeds", type=int, default=module.SEEDS, help="worlds, from seed 0 on")
        study.add_argument("--items", type=int, default=module.ITEMS, help=module.SPENT)
        study.add_argument("--folder", type=Path, default=ROOT / "build" / "studies", help="models and findings kept")
    tuner = names.add_parser("tuner", help=tuner_page.pages.__doc__)
    tuner.add_argument("--seeds", type=int, default=tuner_page.SEEDS, help="novices, from seed 0 on")
    tuner.add_argument("--folder", type=Path, default=ROOT / "build" / "studies", help="models and courses kept")
    asked = parser.parse_args()
    last = ("", True)
    for last in _pages(asked):
        if _in_full(asked):
            DOCS.mkdir(parents=True, exist_ok=True)
            (DOCS / f"{asked.name}.md").write_text(last[0])
    sys.stdout.write(last[0])
    sys.exit(0 if last[1] else 1)


def _pages(asked: argparse.Namespace) -> Iterator[tuple[str, bool]]:
    if asked.name == "gate":
        yield gate_page.page(asked.lives)
        return
    torch.set_num_threads(1)                            # models as small lose by more
    if asked.name == "tuner":
        yield from tuner_page.pages(asked.folder.resolve(), asked.seeds)
    else:
        yield from PAGES[asked.name].pages(asked.folder.resolve(), asked.seeds, asked.items)


def _in_full(asked: argparse.Namespace) -> bool:
    if asked.name == "gate":
        return asked.lives is None
    if asked.name == "tuner":
        return bool(asked.seeds >= tuner_page.SEEDS)
    module = PAGES[asked.name]
    return bool(asked.seeds >= module.SEEDS and asked.items >= module.ITEMS)


if __name__ == "__main__":
    main()
