"""Run a study at its full length and write its page: `python -m studies NAME`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from studies import gate_page

PAGES = {"gate": gate_page.page}
DOCS = Path(__file__).resolve().parent.parent / "docs" / "studies"


def main() -> None:
    parser = argparse.ArgumentParser(prog="studies", description=__doc__)
    parser.add_argument("name", choices=sorted(PAGES))
    parser.add_argument("--lives", type=int, default=None, help="lives in each world, where fewer shall do")
    asked = parser.parse_args()
    text, holds = PAGES[asked.name](asked.lives)
    sys.stdout.write(text)
    if asked.lives is None:
        DOCS.mkdir(parents=True, exist_ok=True)
        (DOCS / f"{asked.name}.md").write_text(text)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
