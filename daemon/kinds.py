"""What the kinds of jobs and of artefacts differ in for the process that runs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

TRIALS: Final = frozenset({"train", "segment"})
"""Kinds that get a process of their own: what they leave in memory ends with them."""
MAY_READ_THE_VAULT: Final = frozenset({"gate", "watch", "report"})
MAKES_SEALED_ITEMS: Final = frozenset({"seal", "deal"})
OWN_PROCESS: Final = TRIALS | MAY_READ_THE_VAULT | MAKES_SEALED_ITEMS
"""Kinds whose process does nothing else, before or after: trials, and whatever has the vault in its memory."""
SEALED_KINDS: Final = frozenset({"vault", "guard", "seal"})
ARTEFACT_KINDS: Final = frozenset({"model", "checkpoint", "scores", "data", "vault", "guard", "seal"})


def sources_of(params: Any) -> tuple[str, ...]:
    """The files of the operator's that the parameters name as the source of a task's items."""
    if isinstance(params, Mapping):
        source = params.get("source")
        own = (str(source["path"]),) if isinstance(source, Mapping) and "path" in source else ()
        return tuple(sorted({*own, *(path for value in params.values() for path in sources_of(value))}))
    if isinstance(params, list | tuple):
        return tuple(sorted({path for value in params for path in sources_of(value)}))
    return ()


def artefact_kind(output: str) -> str:
    """The kind under which an output is kept: its name up to a colon where that is a kind, else data."""
    kind = output.partition(":")[0]
    return kind if kind in ARTEFACT_KINDS else "data"
