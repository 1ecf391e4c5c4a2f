"""After a release: the watch over the new stable model, and the rollback that it makes by itself.

The row of the release fixes the terms; every look is a finished job, and its per-item scores are kept, so that a watch
that was interrupted at any point goes on where it was and its end can be recomputed. A watch whose job crashed is begun
again, a few times; each attempt is a row. Invariants: a watch ends with one row; nothing here returns to a loop;
working stays where it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import count
from typing import Any

from safety.pending import failed_watches, under_watch
from safety.release import ReleaseDesk, deal_spec
from safety.rollback import RollbackError, rollback
from safety.watch import TARGETS, Terms, Watch
from safety.yardstick.fresh import sealed_seed
from state.failpoints import failpoint
from state.jobs import JobFailed, JobResult, JobSpec
from state.ledger import MOST_FRUITLESS_ATTEMPTS, Ledger
from state.records import Actor, Channel, Cost, Entry, Event, JsonObject, Row, Verdict

MOST_WATCHES = 3


def to_watch(ledger: Ledger) -> Row | None:
    """The row of the release whose watch is to be begun, or gone on with."""
    ends = [row for event in (Event.WATCHED, Event.ROLLBACK) for row in ledger.rows(event=event)]
    return under_watch(ledger.rows(event=Event.RELEASE), ends)


def watch(desk: ReleaseDesk) -> Row | None:
    """Watch a release to its end: rolled back, its items used up, or overtaken. Returns the row that says so, or the
    one of an attempt that failed; None where there is nothing to watch. Parked passes through and leaves it open.
    """
    release = to_watch(desk.ledger)
    if release is None:
        return None
    round_ = Round(desk, release)
    try:
        if desk.ledger.begin_attempt(release) > MOST_FRUITLESS_ATTEMPTS:
            reason = f"it took the daemon down {MOST_FRUITLESS_ATTEMPTS} times without getting any further"
            return round_.end(f"the watch of row {release.id} failed: {reason}", Verdict.CRASHED)
        reason = round_.look_after()
    except JobFailed as failure:
        return round_.fail(failure)
    return round_.recall() if round_.seen.worse else round_.end(reason)


class Round:
    """One watch from here to its end: what it goes by and what it has seen."""

    def __init__(self, desk: ReleaseDesk, release: Row) -> None:
        nomination = desk.ledger.row(int(release.evidence["nomination"]))
        assert nomination is not None
        self.desk, self.release, self.nomination = desk, release, nomination
        self.terms = Terms.from_json(release.evidence["watch"])
        self.seen = Watch(self.terms)
        vault = desk.registry.path(str(release.evidence["vault"]))
        self.seed = sealed_seed(vault, "watch", int(release.evidence["k"]))
        self.dealt: str | None = None
        self.looks: list[JsonObject] = []
        self.spent: list[Cost] = []
        self.failed = failed_watches(release, desk.ledger.rows(after=release.id, event=Event.WATCHED))

    def look_after(self) -> str:
        """Look until something is found or there is nothing more to look at; why it ended, in words."""
        names = (*self.terms.targets, *sorted(self.terms.margins))
        counts = dict.fromkeys(names, self.terms.items)
        self.dealt = self._run(deal_spec(self.desk, self.nomination, names, counts, self.seed)).outputs["vault"]
        failpoint("watch.dealt")
        for number in count():
            if self._overtaken():
                return f"the watch of row {self.release.id} ended: stable has moved on"
            spec = self._spec(number)
            result = self._run(spec)
            scores = json.loads(self.desk.registry.path(result.outputs["scores"]).read_text(encoding="utf-8"))
            self.looks.append({
                "job": spec.digest, "scores": result.outputs["scores"], "items_digest": result.values["items_digest"],
            })
            found = self.seen.take(scores)
            failpoint("watch.looked")
            if found or not result.values["more"] or (number + 1) * self.terms.look >= self.terms.items:
                break
        return f"the watch of row {self.release.id} ended: not shown to be worse on new items, {self._in_numbers()}"

    def recall(self) -> Row:
        """Roll back by itself, and latch what was found to be worse."""
        name = str(self.seen.worse)
        what = "worse than the model it replaced" if name == TARGETS else f"lost more than its margin on {name}"
        reason = f"{what} on new items: {self._in_numbers()}"
        with self.desk.ledger.deciding:
            if self._overtaken():
                return self.end(f"the watch of row {self.release.id} ended: {what}, but stable has moved on")
            failpoint("watch.found")
            try:
                return rollback(
                    self.desk.ledger, self.desk.registry, None, reason, Actor.LOOP, evidence=self._evidence(),
                    cost=sum(self.spent, Cost()).to_json(),
                )
            except RollbackError as error:
                return self.end(f"the watch of row {self.release.id} ended: {reason}, but {error}")

    def fail(self, failure: JobFailed) -> Row:
        """The row of an attempt that failed. The watch is over with the last one, and with one that no repetition
        helps: out of time, or refused by a bound."""
        attempt = self.failed + 1
        again = failure.verdict is Verdict.CRASHED and attempt < MOST_WATCHES
        words = f"failed, attempt {attempt} of {MOST_WATCHES}" if again else "was given up"
        return self.end(f"the watch of row {self.release.id} {words}: {failure}", failure.verdict, again=again)

    def end(self, reason: str, verdict: Verdict | None = None, *, again: bool = False) -> Row:
        """The row that ends a watch without a rollback, or, where it is begun again, one attempt."""
        evidence = self._evidence()
        evidence["watch"] |= {"again": True} if again else {}
        return self.desk.ledger.append(Entry(
            Event.WATCHED, reason, verdict=verdict, base=self.release.base, result=self.release.result,
            evidence=evidence, cost=sum(self.spent, Cost()).to_json(),
        ))

    def _overtaken(self) -> bool:
        return self.desk.ledger.channel(Channel.STABLE) != self.release.result

    def _spec(self, number: int) -> JobSpec:
        params: Mapping[str, Any] = {
            "tasks": self.nomination.evidence["tasks"], "targets": list(self.terms.targets),
            "guards": sorted(self.terms.margins), "look": number, "size": self.terms.look, "items": self.terms.items,
            "batch": self.nomination.evidence["batch"],
        }
        inputs = {
            "model:new": str(self.release.result), "model:old": str(self.release.base), "dealt": str(self.dealt),
        }
        return JobSpec("watch", inputs, params, 0, self.desk.code)

    def _run(self, spec: JobSpec) -> JobResult:
        result = self.desk.runner.run(spec, timeout_seconds=self.desk.bounds().job_seconds)
        self.spent.append(result.cost)
        return result

    def _in_numbers(self) -> str:
        largest = max((process.e for process in self.seen.processes.values()), default=1.0)
        items = ", ".join(f"{process.count} {name}" for name, process in self.seen.processes.items())
        return f"evidence {largest:.3g} of {self.terms.threshold:.3g} needed, items: {items}"

    def _evidence(self) -> JsonObject:
        """Everything that `kaizend verify` needs to compute the end of this watch again."""
        return {"code": self.desk.code, "watch": {
            **self.terms.to_json(), **self.seen.to_json(), "release": self.release.id, "looks": self.looks,
            "dealt": self.dealt, "seed": self.seed,
        }}
