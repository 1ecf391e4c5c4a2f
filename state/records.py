"""The vocabulary that every layer shares: what a candidate, a cycle, an outcome and a ledger row are.

Values only, standard library only. How they are kept is the business of `state.ledger` and `state.registry`; what a
unit of heavy work is stands in `state.jobs`. Invariant: everything here is frozen and has one canonical JSON form, so
that equal values have equal digests on every host.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

JsonObject = dict[str, Any]


class LoopName(StrEnum):
    ARCHITECTURE = "architecture"
    PIPELINE = "pipeline"
    REWARD = "reward"


class Verdict(StrEnum):
    PROMOTED = "PROMOTED"
    REJECTED = "REJECTED"
    REFUSED = "REFUSED"
    CRASHED = "CRASHED"
    TIMED_OUT = "TIMED_OUT"
    ROLLED_BACK = "ROLLED_BACK"


class Channel(StrEnum):
    WORKING = "working"
    STABLE = "stable"


class Split(StrEnum):
    SEARCH = "search"
    VAULT = "vault"
    GUARD = "guard"


class Event(StrEnum):
    """What a ledger row records."""

    GENESIS = "genesis"        # the first model, task splits and code a state folder started with
    OPENED = "opened"          # a cycle was proposed; nothing has been run yet
    CLOSED = "closed"          # a cycle has its verdict
    NOMINATED = "nominated"    # working asked to become stable; its number k and level are fixed here
    PASSED = "passed"          # a nomination passed the gate and waits for the operator
    RELEASE = "release"        # the gate's verdict on a nomination, or the operator's on one that waited
    WATCHED = "watched"        # the watch after a release ended without a rollback, or an attempt at it failed
    ROLLBACK = "rollback"      # stable moved back and the bad digest was latched
    BOUNDS = "bounds"          # the bounds in force changed
    KEY = "key"                # another key signs the heads from here on
    ALARM = "alarm"            # the reward monitor fired
    OPERATOR = "operator"      # any other act of the operator


class Actor(StrEnum):
    LOOP = "loop"
    OPERATOR = "operator"


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN.

    Raises ValueError for NaN or infinity and TypeError for what JSON cannot say.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical form."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def seed_from(*parts: object) -> int:
    """A 63-bit seed that depends on every part; the only way seeds are derived."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class Cost:
    """What a piece of work used. `joules` is None where energy cannot be read."""

    seconds: float = 0.0
    gpu_seconds: float = 0.0
    items: int = 0
    tokens: int = 0
    joules: float | None = None

    def __add__(self, other: Cost) -> Cost:
        energies = [e for e in (self.joules, other.joules) if e is not None]
        return Cost(
            self.seconds + other.seconds,
            self.gpu_seconds + other.gpu_seconds,
            self.items + other.items,
            self.tokens + other.tokens,
            sum(energies) if energies else None,
        )

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, body: JsonObject) -> Cost:
        return cls(**body)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a cycle may spend, its children included. A child never gets more than its parent has left.

    `trials` counts child cycles and `tokens` training tokens: both are repeatable, so they decide what a loop does.
    `seconds` only ends what overran: a cycle that meets it is TIMED_OUT.
    """

    seconds: float
    tokens: int
    trials: int

    def capped(self, *, seconds: float | None = None, tokens: int | None = None, trials: int | None = None) -> Budget:
        """The part of this budget that is handed down: each limit is the smaller of both."""
        return Budget(
            min(self.seconds, self.seconds if seconds is None else seconds),
            min(self.tokens, self.tokens if tokens is None else tokens),
            min(self.trials, self.trials if trials is None else trials),
        )

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, body: JsonObject) -> Budget:
        return cls(**body)


@dataclass(frozen=True, slots=True)
class Candidate:
    """The proposed change, not yet run.

    `change` is self-sufficient JSON (a genome, a recipe or a shaping); `base` is the digest of the model it starts
    from; `incumbent` is the digest of the model it must beat.
    """

    loop: LoopName
    change: JsonObject
    base: str
    incumbent: str

    def to_json(self) -> JsonObject:
        return {"loop": str(self.loop), "change": self.change, "base": self.base, "incumbent": self.incumbent}

    @classmethod
    def from_json(cls, body: JsonObject) -> Candidate:
        return cls(LoopName(body["loop"]), body["change"], body["base"], body["incumbent"])


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a cycle ended.

    `result` is the digest of the model that came out (None where none was written); `evidence` holds the numbers
    that decide, small enough for a ledger row; `lesson` is what `learn` needs beyond that and is kept with the cycle,
    not in the row.
    """

    verdict: Verdict
    reason: str
    result: str | None = None
    evidence: JsonObject = field(default_factory=dict)
    lesson: JsonObject = field(default_factory=dict)
    cost: Cost = Cost()

    def with_cost(self, cost: Cost) -> Outcome:
        return replace(self, cost=cost)

    def with_warnings(self, lines: list[str]) -> Outcome:
        """The same outcome with these warnings beside those it has."""
        if not lines:
            return self
        known = self.evidence.get("warnings", [])
        return replace(self, evidence={**self.evidence, "warnings": list(dict.fromkeys([*known, *lines]))})

    def to_json(self) -> JsonObject:
        return {
            "verdict": str(self.verdict),
            "reason": self.reason,
            "result": self.result,
            "evidence": self.evidence,
            "lesson": self.lesson,
            "cost": self.cost.to_json(),
        }

    @classmethod
    def from_json(cls, body: JsonObject) -> Outcome:
        return cls(
            Verdict(body["verdict"]), body["reason"], body["result"], body["evidence"], body["lesson"],
            Cost.from_json(body["cost"]),
        )


@dataclass(frozen=True, slots=True)
class Cycle:
    """One attempted self-modification, as the ledger holds it. `id` is the id of its opening row.

    `ordinal` counts the children of one parent (or the root cycles of the daemon's life) from 0: together with
    `parent` it names the cycle, so a parent that runs again finds its children instead of opening new ones.
    `state` is the loop's state before the cycle. `outcome` is None while it is open.
    """

    id: int
    loop: LoopName
    parent: int | None
    ordinal: int
    candidate: Candidate
    state: JsonObject
    budget: Budget
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What goes into a ledger row, before it is chained."""

    event: Event
    reason: str
    cycle: int | None = None
    parent: int | None = None
    loop: LoopName | None = None
    change: JsonObject = field(default_factory=dict)
    verdict: Verdict | None = None
    base: str | None = None
    result: str | None = None
    evidence: JsonObject = field(default_factory=dict)
    cost: JsonObject = field(default_factory=dict)
    actor: Actor = Actor.LOOP


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the ledger. `hash` covers every other field, `prev` is the hash of the row before (64 zeros first)."""

    id: int
    time: str
    event: str
    cycle: int | None
    parent: int | None
    loop: str | None
    change: JsonObject
    verdict: str | None
    reason: str
    base: str | None
    result: str | None
    evidence: JsonObject
    cost: JsonObject
    actor: str
    prev: str
    hash: str

    def to_json(self) -> JsonObject:
        return asdict(self)
