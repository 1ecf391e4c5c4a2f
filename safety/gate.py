"""The gate: the level of each nomination, the sequential decision on the vault and the guards, and its recomputation.

Pure and standard library only, so that `kaizend verify` needs nothing but this file and the ledger. Not here: scoring
(`safety.yardstick.gating`) and rows (`safety.release`). Invariant: over the daemon's life the chance of releasing a
model that is no better than the one it replaces is at most alpha, because the k-th nomination is tested at
a_k = alpha g_k / k: the g_k sum to at most 1, and the at most k models that can be stable by then share the level.
Under `e-lond` another thing is bounded by alpha: the expected share of false releases among all releases.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from safety.eprocess import BETS, EProcess, futility_of
from state.records import JsonObject, digest_of

GUARD_LEVEL = 0.05      # each guard; all must pass, so nothing is corrected
FUTILITY_LEVEL = 0.05   # stops a hopeless test; costs no validity
MOST_GUARD_ITEMS = 2**62


class Decision(StrEnum):
    RELEASE = "release"
    FUTILE = "futile"                # a gain as small as `least_gain` is refuted
    UNDECIDED = "undecided"          # the vault was used up first
    GUARD_FAILED = "guard_failed"    # better on the targets, but a guard was not shown to hold


def level(k: int, alpha: float) -> float:
    """a_k = alpha g_k / k with g_k = .47 / ((k + 1) ln^2 (k + 1)), for the k-th nomination of the life, k >= 1."""
    if k < 1 or not 0.0 < alpha < 1.0:
        raise ValueError(f"a level needs k >= 1 and 0 < alpha < 1, got k = {k} and alpha = {alpha}")
    return alpha * 0.47 / ((k + 1) * math.log(k + 1) ** 2) / k


def lond_level(k: int, alpha: float, releases: int) -> float:
    """a_k = alpha g_k (R + 1) / (k H_k), where R < k is the number of releases before and H_k = 1 + 1/2 + ... + 1/k.

    e-LOND (Xu and Ramdas, "Online multiple testing with e-values") tests at alpha g_k (R + 1). Here the k possible
    incumbents share the level as under `level`. And the threshold depends on R, which the same vault decided, while
    the test stops as soon as it is reached: for that the reshaping by H_k pays (Blanchard and Roquain, 2008), because
    sum_r P(r is the least with E >= k H_k / (alpha g_k r)) / r <= alpha g_k / k, whatever R depends on.
    """
    if not 0 <= releases < k:
        raise ValueError(f"nomination {k} cannot follow {releases} releases")
    return level(k, alpha) * (releases + 1) / math.fsum(1.0 / i for i in range(1, k + 1))


class Procedure(StrEnum):
    """What `alpha` bounds."""

    LIFETIME = "lifetime"        # the chance of ever releasing a model that is no better
    E_LOND = "e-lond"            # the expected share of such releases among all


@dataclass(frozen=True, slots=True)
class Rules:
    """What a nomination is judged by, fixed in its NOMINATED row before any item is scored.

    `d0` is the gain that must be exceeded, `least_gain` the smallest one worth waiting for (futility), `margins` what
    each guard task may lose at most; `releases` is how many there were before, which only e-LOND looks at.
    """

    k: int
    alpha: float
    d0: float
    least_gain: float
    margins: Mapping[str, float]
    procedure: Procedure = Procedure.LIFETIME
    releases: int = 0

    @property
    def alpha_k(self) -> float:
        if self.procedure is Procedure.E_LOND:
            return lond_level(self.k, self.alpha, self.releases)
        return level(self.k, self.alpha)

    @property
    def threshold(self) -> float:
        return 1.0 / self.alpha_k

    def to_json(self) -> JsonObject:
        return {
            "k": self.k, "alpha": self.alpha, "alpha_k": self.alpha_k, "threshold": self.threshold,
            "d0": self.d0, "futility": self.least_gain, "margins": dict(self.margins),
            "procedure": str(self.procedure), "releases": self.releases,
        }

    @classmethod
    def from_json(cls, body: JsonObject) -> Rules:
        return cls(
            int(body["k"]), body["alpha"], body["d0"], body["futility"], dict(body["margins"]),
            Procedure(body.get("procedure", Procedure.LIFETIME)), int(body.get("releases", 0)),
        )


@dataclass(slots=True)
class SequentialTest:
    """One e-process run against its threshold, item by item, beside an optional futility process."""

    evidence: EProcess
    threshold: float
    least_gain: float | None = None
    hopeless: EProcess = field(default_factory=EProcess)
    trajectory: list[float] = field(default_factory=list)
    passed: bool | None = None                                   # None while neither process has decided

    def take(self, differences: Iterable[float]) -> bool | None:
        """Use a batch up to the item that decides; where batches end never changes the answer."""
        for difference in differences:
            if self.passed is not None:
                break
            if self.evidence.add(difference) >= self.threshold:
                self.passed = True
            elif self._hopeless(difference):
                self.passed = False
        self.trajectory.append(self.evidence.e)
        return self.passed

    def _hopeless(self, difference: float) -> bool:
        if self.least_gain is None:
            return False
        return self.hopeless.add(futility_of(difference, self.least_gain)) >= 1.0 / FUTILITY_LEVEL


@dataclass(frozen=True, slots=True)
class Findings:
    """What the gate found. `guards` holds, per task: margin, e, n, passed."""

    decision: Decision
    e: float
    n: int
    trajectory: Sequence[float]
    guards: Mapping[str, JsonObject]

    def to_json(self) -> JsonObject:
        return {
            "decision": str(self.decision), "e": self.e, "n": self.n, "trajectory": list(self.trajectory),
            "guards": {task: dict(found) for task, found in self.guards.items()},
        }


Batches = Iterable[Sequence[float]]


def decide(rules: Rules, targets: Batches, guards: Mapping[str, Batches]) -> Findings:
    """The decision over differences new - old in [-1, 1]: the pooled targets first, then every guard.

    The batches may be lazy: no more are asked for than the decision needs, so what is scored is what is used.
    Every task in `rules.margins` must be in `guards` (KeyError otherwise); a guard without items does not pass.
    """
    test = SequentialTest(EProcess(rules.d0), rules.threshold, rules.least_gain)
    _feed(test, targets)
    if test.passed is not True:
        decision, judged = Decision.UNDECIDED if test.passed is None else Decision.FUTILE, {}
    else:
        judged = {task: _guard(margin, guards[task]) for task, margin in sorted(rules.margins.items())}
        decision = Decision.RELEASE if all(found["passed"] for found in judged.values()) else Decision.GUARD_FAILED
    return Findings(decision, test.evidence.e, test.evidence.count, test.trajectory, judged)


def _feed(test: SequentialTest, batches: Batches) -> None:
    for batch in batches:
        if test.take(batch) is not None:
            return


def _guard(margin: float, batches: Batches) -> JsonObject:
    """H0: the task lost `margin` or more on average. Passing refutes it."""
    test = SequentialTest(EProcess(-margin), 1.0 / GUARD_LEVEL)
    _feed(test, batches)
    return {"margin": margin, "e": test.evidence.e, "n": test.evidence.count, "passed": test.passed is True}


def disagreements(evidence: JsonObject, scores: JsonObject) -> list[str]:
    """What a release row's evidence claims that its per-item scores do not give; empty when all of it does.

    `scores` is {"targets": {"new": [..], "old": [..], ..}, "guards": {task: {"new", "old", ..}}} as the gate job
    keeps it, in the order of scoring.
    """
    rules = Rules.from_json(evidence)
    found = decide(
        rules, [differences_of(scores["targets"])],
        {task: [differences_of(scores["guards"][task])] if task in scores["guards"] else [] for task in rules.margins},
    )
    again = {**rules.to_json(), **found.to_json()}
    problems = [
        f"{name}: the ledger says {evidence.get(name)}, its scores give {again[name]}"
        for name in ("alpha_k", "threshold", "decision", "e", "n") if not same(evidence.get(name), again[name])
    ]
    claimed = evidence.get("guards", {})
    for task in sorted(claimed.keys() | found.guards.keys()):
        before, after = claimed.get(task, {}), found.guards.get(task, {})
        if any(not same(before.get(name), after.get(name)) for name in ("margin", "e", "n", "passed")):
            problems.append(f"guard {task}: the ledger says {before}, its scores give {dict(after)}")
    return problems


def recompute(evidence: JsonObject, scores: JsonObject) -> bool:
    """Whether the decision in a release row's evidence follows from its per-item scores."""
    return not disagreements(evidence, scores)


def differences_of(record: JsonObject) -> list[float]:
    """new - old of each item of one record of scores, in the order of scoring."""
    return [new - old for new, old in zip(record["new"], record["old"], strict=True)]


def items_digest(scores: JsonObject) -> str:
    """The digest of which items were scored, in which order."""
    return digest_of({
        "targets": scores["targets"]["items"],
        "guards": {name: record["items"] for name, record in scores["guards"].items()},
    })


def commitment_of(seed: int) -> str:
    """What is recorded before new items are dealt; the seed itself is told with the answer."""
    return digest_of(["seed", seed])


def same(left: object, right: object) -> bool:
    """Whether two JSON values agree, numbers up to what another machine's logarithm may change."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, bool) or isinstance(right, bool) or not isinstance(left, (int, float)):
        return left == right
    return isinstance(right, (int, float)) and math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-300)


def smallest_gain(items: int, alpha_k: float, discordance: float = 0.1) -> float | None:
    """The smallest mean gain that `items` vault items are likely to show at level `alpha_k`; None where no gain is.

    `discordance` is the share of items on which the two models differ. The rule: the best bet's expected log growth
    over all items must reach ln(1 / alpha_k) and one mixture weight. It agrees within a tenth or so with simulated
    item counts (550 items for 5 points at 1e-3 and 10 %).
    """
    needed = math.log(1.0 / alpha_k) + 1.0
    for step in range(1, 1001):
        gain = discordance * step / 1000
        win, loss = (discordance + gain) / 2, (discordance - gain) / 2
        bet = min(0.9, gain / discordance)
        if items * (win * math.log1p(bet) + loss * math.log1p(-bet)) >= needed:
            return gain
    return None


def fewest_guard_items(margin: float) -> int:
    """How many items a guard needs to pass when both models agree on every one of them; fewer can never pass."""
    step = [math.log1p(bet * margin / (1.0 - margin)) for bet in BETS]
    enough = math.log(len(BETS) / GUARD_LEVEL)

    def reached(count: int) -> bool:
        logs = [min(count * log, 2 * enough) for log in step]
        return math.log(sum(map(math.exp, logs))) >= enough

    most = 1
    while most < MOST_GUARD_ITEMS and not reached(most):
        most *= 2
    return bisect_left(range(most), True, key=reached)       # a small margin needs millions
