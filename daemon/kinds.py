"""What the kinds of jobs and of artefacts differ in for the process that runs them."""

from __future__ import annotations

from typing import Final

from state.jobs import JobSpec

TRIALS: Final = frozenset({"train", "prefer", "segment", "reward_model"})
"""Kinds that get a process of their own: what they leave in memory ends with them."""
READS_SEALED_ITEMS: Final = frozenset({"gate", "watch", "report"})
MAKES_SEALED_ITEMS: Final = frozenset({"seal", "deal"})
OWN_PROCESS: Final = TRIALS | READS_SEALED_ITEMS | MAKES_SEALED_ITEMS
"""Kinds whose process does nothing else, before or after: trials, and whatever has sealed items in its memory."""
SEALED_SPLITS: Final = frozenset({"vault", "guard"})
SEALED_KINDS: Final = frozenset({"vault", "guard", "seal"})
ARTEFACT_KINDS: Final = frozenset({"model", "checkpoint", "scores", "data", "vault", "guard", "seal"})


def sources_of(spec: JobSpec) -> tuple[str, ...]:
    """The operator's files that a job may read: the sealing those that its tasks name, every other job none."""
    if spec.kind != "seal":
        return ()
    sources = [task["source"] for task in spec.params.get("tasks", ())]
    return tuple(sorted({str(source["path"]) for source in sources if "path" in source}))


def artefact_kind(output: str) -> str:
    """The kind under which an output is kept: its name up to a colon where that is a kind, else data."""
    kind = output.partition(":")[0]
    return kind if kind in ARTEFACT_KINDS else "data"
