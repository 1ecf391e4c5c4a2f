"""Which code is running, as one digest: a part of every job's identity. Standard library only."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from state.records import digest_of

PACKAGES = ("daemon", "loops", "safety", "state")


@cache
def code_version() -> str:
    """SHA-256 over the names and contents of every source file of the four packages, read once per process."""
    return version_of(Path(__file__).resolve().parent.parent)


def version_of(checkout: Path) -> str:
    """The digest of the four packages below `checkout`."""
    return digest_of({
        source.relative_to(checkout).as_posix(): hashlib.sha256(source.read_bytes()).hexdigest()
        for package in PACKAGES
        for source in sorted((checkout / package).rglob("*.py"))
    })
