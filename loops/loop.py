"""The Protocol that every loop satisfies, and the bench on which a candidate is tried.

A loop is stateless code: its learned state is a JSON value that the ledger keeps. `start`, `propose`, `judge` and
`learn` are pure; only `run` has effects, and only through the bench: jobs and child cycles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from state.jobs import JobFailed, JobResult, JobSpec, Runner
from state.records import Budget, Candidate, Cost, Cycle, JsonObject, LoopName, Outcome, Verdict, seed_from


@dataclass(frozen=True, slots=True)
class Trial:
    """What running a candidate gave: the model that came out (None where none was written) and what was measured."""

    result: str | None
    values: JsonObject


class Loop(Protocol):
    """One of the three loops. The caller keeps `state` and passes it back unchanged."""

    @property
    def name(self) -> LoopName: ...

    def start(self) -> JsonObject:
        """The state before the first cycle."""
        ...

    def propose(
        self, state: JsonObject, base: str, incumbent: str, seed: int, in_flight: Sequence[Candidate] = ()
    ) -> Candidate:
        """The next candidate, another one than those `in_flight`. Pure: the same arguments give the same candidate."""
        ...

    def run(self, candidate: Candidate, bench: Bench) -> Trial:
        """Carry the candidate out, by jobs and child cycles of the bench only."""
        ...

    def judge(self, candidate: Candidate, trial: Trial) -> Outcome:
        """PROMOTED or REJECTED, with the numbers that decide. Pure."""
        ...

    def learn(self, state: JsonObject, candidate: Candidate, outcome: Outcome) -> JsonObject:
        """The state after the cycle, whatever its verdict. Pure: a new value, `state` is left as it was."""
        ...


Descend = Callable[[Loop, int, int, str, str, Budget], Outcome]


@dataclass(slots=True)
class Bench:
    """What one attempt at a cycle may use: jobs, child cycles, seeds and what is left of the budget.

    `own_seed` follows from where the cycle stands among the others; `inside` tells how many cycles were opened inside
    the child of an ordinal: they count against this cycle's trials like the child itself.
    """

    cycle: Cycle
    runner: Runner
    code: str
    descend_into: Descend
    job_seconds: float
    own_seed: int = 0
    inside: Callable[[int], int] = lambda ordinal: 0
    clock: Callable[[], float] = time.monotonic
    spent: Cost = field(default_factory=Cost)
    children: int = 0
    trials: int = 0
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def seed(self, *parts: object) -> int:
        """A seed of this cycle's own; equal parts give equal seeds, also when the cycle is run again."""
        return seed_from("cycle", self.own_seed, *parts)

    @property
    def left(self) -> Budget:
        """What remains of the cycle's budget."""
        budget = self.cycle.budget
        return Budget(
            max(0.0, budget.seconds - (self.clock() - self.started)),
            max(0, budget.tokens - self.spent.tokens),
            max(0, budget.trials - self.trials),
        )

    def spec(self, kind: str, inputs: Mapping[str, str], params: Mapping[str, Any], seed: int = 0) -> JobSpec:
        return JobSpec(kind, inputs, params, seed, self.code)

    def job(self, kind: str, inputs: Mapping[str, str], params: Mapping[str, Any], seed: int = 0) -> JobResult:
        """Run one job within the budget. Raises JobFailed."""
        result = self.runner.run(self.spec(kind, inputs, params, seed), timeout_seconds=self._deadline())
        self.spent = self.spent + result.cost
        return result

    def jobs(self, specs: Sequence[JobSpec]) -> list[JobResult | JobFailed]:
        """Run several jobs side by side within the budget; a failed one is returned, not raised."""
        results = self.runner.run_all(specs, timeout_seconds=self._deadline())
        for result in results:
            if isinstance(result, JobResult):
                self.spent = self.spent + result.cost
        return results

    def descend(self, inner: Loop, base: str, incumbent: str, budget: Budget) -> Outcome:
        """Run one cycle of the inner loop as a child of this one, on `budget` or what is left of it.

        Raises JobFailed when no time is left: a child that could only time out would blame its candidate.
        """
        self._deadline()
        left = self.left
        trials = max(0, min(budget.trials, left.trials - 1))          # the child itself is one
        outcome = self.descend_into(
            inner, self.cycle.id, self.children, base, incumbent,
            left.capped(seconds=budget.seconds, tokens=budget.tokens, trials=trials),
        )
        self.trials += 1 + self.inside(self.children)
        self.children += 1
        self.spent = self.spent + outcome.cost
        return outcome

    def _deadline(self) -> float:
        left = self.left.seconds
        if left <= 0:
            raise JobFailed(f"the budget of {self.cycle.budget.seconds:.0f} seconds is used up", Verdict.TIMED_OUT)
        return min(left, self.job_seconds)
