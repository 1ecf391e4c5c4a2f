"""The watch after a release: a reverse e-process that asks whether the new stable model is worse than the one before.

Pure and standard library only, so that `kaizend verify` recomputes it. Not here: drawing and scoring items
(`safety.yardstick.fresh`, `safety.yardstick.looking`), rows and the rollback (`safety.recall`). Invariant: where the
new model is no worse on the items' population, and has lost no more than its margin on any guard, the chance that a
watch ever calls it worse is at most `alpha`, because the targets and the guards share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from safety.eprocess import EProcess
from safety.gate import differences_of, same
from state.records import JsonObject

LOOK_ITEMS = 256        # items of the targets, and of each guard, that one look scores
TARGETS = "targets"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a watch goes by, fixed in the row of its release. `targets` are task names, `margins` name the guards.

    `items` is the most that each group may use, `commitment` the digest of the seed that its items are drawn with.
    """

    alpha: float
    items: int
    targets: tuple[str, ...]
    margins: Mapping[str, float]
    commitment: str
    look: int = LOOK_ITEMS

    @property
    def groups(self) -> dict[str, float]:
        """What the loss of each group has to exceed: the pooled targets any, a guard its margin."""
        return {**({TARGETS: 0.0} if self.targets else {}), **dict(sorted(self.margins.items()))}

    @property
    def threshold(self) -> float:
        return len(self.groups) / self.alpha

    @property
    def possible(self) -> bool:
        return bool(self.items and self.groups)

    def to_json(self) -> JsonObject:
        return {
            "alpha": self.alpha, "threshold": self.threshold, "items": self.items, "look": self.look,
            "targets": list(self.targets), "margins": dict(self.margins), "commitment": self.commitment,
        }

    @classmethod
    def from_json(cls, body: JsonObject) -> Terms:
        return cls(
            float(body["alpha"]), int(body["items"]), tuple(body["targets"]), dict(body["margins"]),
            str(body["commitment"]), int(body["look"]),
        )


@dataclass(slots=True)
class Watch:
    """The reverse e-processes of one watch, fed look by look; after `worse` names a group nothing more is read."""

    terms: Terms
    worse: str | None = None
    processes: dict[str, EProcess] = field(init=False)
    trajectory: list[float] = field(default_factory=list)      # the largest evidence after each look

    def __post_init__(self) -> None:
        self.processes = {name: EProcess(margin) for name, margin in self.terms.groups.items()}

    def take(self, scores: JsonObject) -> str | None:
        """Read the per-item scores of one look; the group that is shown to be worse, if one is.

        `scores` is {"targets": {"new", "old", ..}, "guards": {task: {"new", "old", ..}}}, in the order of scoring.
        """
        for name, process in self.processes.items():
            record = scores[TARGETS] if name == TARGETS else scores["guards"].get(name, {"new": [], "old": []})
            self._feed(name, process, differences_of(record))
        self.trajectory.append(max((process.e for process in self.processes.values()), default=1.0))
        return self.worse

    def _feed(self, name: str, process: EProcess, differences: Iterable[float]) -> None:
        for difference in differences:
            if self.worse is not None:
                return
            if process.add(-difference) >= self.terms.threshold:
                self.worse = name

    def to_json(self) -> JsonObject:
        return {
            "worse": self.worse, "trajectory": list(self.trajectory),
            "e": {name: process.e for name, process in self.processes.items()},
            "n": {name: process.count for name, process in self.processes.items()},
        }


def watched(terms: Terms, looks: Sequence[JsonObject]) -> Watch:
    """The watch after these looks."""
    watch = Watch(terms)
    for scores in looks:
        watch.take(scores)
    return watch


def disagreements(evidence: JsonObject, looks: Sequence[JsonObject]) -> list[str]:
    """What the row that ended a watch claims that the per-item scores of its looks do not give."""
    terms = Terms.from_json(evidence)
    again = {"threshold": terms.threshold, **watched(terms, looks).to_json()}
    return [
        f"{name}: the ledger says {evidence.get(name)}, its scores give {again[name]}"
        for name in ("threshold", "worse", "trajectory", "e", "n") if not same(evidence.get(name), again[name])
    ]
