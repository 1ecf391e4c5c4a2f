"""Which code is running, as one digest: a part of every job's identity. Standard library only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from state.records import digest_of

PACKAGES = ("daemon", "loops", "safety", "state")
ROOT = Path(__file__).resolve().parent.parent
MISSING = "missing"


@cache
def code_version() -> str:
    """SHA-256 over the names and contents of every source file of the four packages, read once per process."""
    return version_of(ROOT)


def version_of(checkout: Path) -> str:
    """The digest of the four packages below `checkout`."""
    return digest_of({
        source.relative_to(checkout).as_posix(): hashlib.sha256(source.read_bytes()).hexdigest()
        for package in PACKAGES
        for source in sorted((checkout / package).rglob("*.py"))
    })


def digests_of(checkout: Path, names: Iterable[str]) -> dict[str, str]:
    """The digest of each source file, or folder of sources, below `checkout`, as it is on disk now; "missing" where
    there is none.
    """
    return {name: _digest(checkout, checkout / name) for name in names}


def _digest(checkout: Path, place: Path) -> str:
    sources = sorted(place.rglob("*.py")) if place.is_dir() else [place] if place.is_file() else []
    if not sources:
        return MISSING
    return digest_of({
        source.relative_to(checkout).as_posix(): hashlib.sha256(source.read_bytes()).hexdigest() for source in sources
    })
