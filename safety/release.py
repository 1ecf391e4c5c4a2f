"""From a nomination to its verdict: the only way in which a model becomes stable, apart from a rollback.

A NOMINATED row fixes k, the level and the rules before anything is measured; the RELEASE row gives the verdict and
moves the channel. What was found in between lies in finished jobs, so a nomination that was interrupted at any point
is found open and finished, with the same k. Where the bounds ask for the operator's approval, a PASSED row stands in
between (`safety.approval`). Invariants: nothing here returns to a loop; which model is nominated, and when, depends on
the search and the operator alone, never on what the vault said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any

from safety import conditions, gate, protected
from safety.approval import stale, withdraw
from safety.bounds import Bounds, DriftBounds, Refusal
from safety.closing import Answer, close, hold, needs_approval
from safety.history import Nominations, reference
from safety.noise import noise_spec, too_noisy
from safety.pending import begins_watch, release_watched
from safety.readings import of_release
from safety.yardstick.fresh import can_deal, sealed_seed
from safety.yardstick.items import TaskSpec
from state.jobs import JobFailed, JobResult, JobSpec, Runner
from state.ledger import MOST_FRUITLESS_ATTEMPTS, Ledger
from state.records import Channel, Cost, Entry, Event, JsonObject, Row, Verdict
from state.registry import Registry

PROBE_ITEMS = 64
SERVED_ITEMS = 8


@dataclass(frozen=True, slots=True)
class Seals:
    """Digests of what was sealed at the start of the life."""

    vault: str
    guard: str
    seal: str


@dataclass(frozen=True, slots=True)
class ReleaseDesk:
    """What a nomination works with. `bounds` is asked anew each time."""

    ledger: Ledger
    registry: Registry
    runner: Runner
    bounds: Callable[[], Bounds]
    tasks: Sequence[TaskSpec]
    seals: Seals
    code: str
    seed: int
    batch: int = 64
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    data: Mapping[str, str] = field(default_factory=dict)       # what models are trained on: never dealt as new items
    tested: list[tuple[datetime, datetime]] = field(default_factory=list)   # when stable met itself outside nominations


def nominate(desk: ReleaseDesk) -> Row | None:
    """Ask for working to become stable, or finish what was asked. Returns the RELEASE row, the PASSED row where the
    operator has to approve, None when nothing was due. Parked passes through and leaves the nomination open.
    """
    with desk.ledger.deciding:
        withdraw(desk.ledger, desk.registry, desk.bounds())
        row = Nominations.of(desk.ledger).open or (None if hindrance(desk) else _ask(desk))
    if row is None:
        return None
    spent: list[Cost] = []
    try:
        if desk.ledger.begin_attempt(row) > MOST_FRUITLESS_ATTEMPTS:
            raise JobFailed(f"it took the daemon down {MOST_FRUITLESS_ATTEMPTS} times without getting any further")
        answer = _answer(desk, row, spent)
    except JobFailed as failure:
        answer = Answer(failure.verdict, str(failure), {})
    with desk.ledger.deciding:                   # the operator may have rolled back while the gate was scoring
        late = stale(desk.ledger, row) if answer.verdict is Verdict.PROMOTED else None
        if late:
            answer = Answer(Verdict.REFUSED, late, answer.evidence)
        answer = _examined(desk, row, replace(answer, evidence=answer.evidence | {"code": desk.code}))
        if answer.verdict is Verdict.PROMOTED and needs_approval(row, desk.bounds()):
            return hold(desk.ledger, row, answer, desk.bounds(), sum(spent, Cost()))
        return close(desk.ledger, desk.registry, row, answer, desk.bounds(), cost=sum(spent, Cost()))


def due(desk: ReleaseDesk) -> bool:
    """Whether there is a nomination to finish or to ask for."""
    return Nominations.of(desk.ledger).open is not None or hindrance(desk) is None


def noise_now(desk: ReleaseDesk) -> JobSpec:
    """The A/A test of the stable model that a nomination at this moment would ask for."""
    sealed = {"vault": desk.seals.vault, "guard": desk.seals.guard}
    tasks = [task.to_json() for task in desk.tasks]
    return noise_spec(str(desk.ledger.channel(Channel.STABLE)), sealed, tasks, desk.batch, desk.now(), desk.code)


def compare_with_itself(desk: ReleaseDesk) -> JsonObject:
    """The A/A test of the stable model outside a nomination, for which it is kept. Raises JobFailed, also where it took
    the daemon down too often.

    Like a watch it stops the clock between nominations: which model is stable, and so has to be tested, is the vault's
    word.
    """
    began = desk.now()
    genesis = desk.ledger.latest(Event.GENESIS)
    assert genesis is not None
    try:
        if desk.ledger.begin_attempt(genesis) > MOST_FRUITLESS_ATTEMPTS:
            raise JobFailed(f"it took the daemon down {MOST_FRUITLESS_ATTEMPTS} times without getting any further")
        return _run(desk, noise_now(desk), []).values
    finally:
        desk.tested.append((began, desk.now()))


def hindrance(desk: ReleaseDesk) -> str | None:
    """Why working is not nominated now, in words; None when it may be."""
    ledger, bounds = desk.ledger, desk.bounds()
    stop = protected.stopped(ledger)
    if stop:
        return stop
    working, stable = ledger.channel(Channel.WORKING), ledger.channel(Channel.STABLE)
    if working is None or stable is None or working == stable:
        return "working is what is stable"
    if working in ledger.latched():
        return "working was rolled back and is latched"
    nominations = Nominations.of(ledger)
    if nominations.was_answered(working, bounds.digest):
        return "working has been nominated already"
    return _too_often(desk, nominations, bounds)


def _too_often(desk: ReleaseDesk, nominations: Nominations, bounds: Bounds) -> str | None:
    """The bound on rate that holds, as text. Counted are nominations, so the vault's answers decide nothing here.

    The time is the largest seen so far, for rows as for now: so no bound is loosened by a clock that is set back.
    """
    rate, now = bounds.rate, desk.now()
    now = max(now, desk.ledger.latest_time() or now)

    def since(row: Row) -> timedelta:
        return now - (desk.ledger.latest_time(row.id) or now)

    day = list(takewhile(lambda row: since(row) < timedelta(days=1), reversed(nominations.asked)))
    if len(day) >= rate.releases_per_day:
        return f"rate.releases_per_day: {len(day)} nominations in the last 24 hours"
    last = nominations.last
    if last is None:
        return None
    ended = nominations.ended(last)                         # how long the gate took is the vault's word: it must not
    if _dwelt(desk, since(ended), now) < rate.dwell_seconds:                        # decide which model comes next
        return f"rate.dwell_seconds: less than {rate.dwell_seconds:g} seconds since the last nomination was answered"
    needed = rate.cycles_between_nominations
    closed = 0
    for row in desk.ledger.rows(after=last.id, event=Event.CLOSED):
        closed += row.parent is None
        if closed >= needed:
            break
    return None if closed >= needed else f"rate.cycles_between_nominations: {closed} of {needed} cycles have closed"


def _dwelt(desk: ReleaseDesk, passed: timedelta, now: datetime) -> float:
    """Seconds of the time that has passed in which no release was being watched and stable did not meet itself:
    whether it is so is the vault's word too.
    """
    since = now - passed
    releases = {row.id: _time(row) for row in desk.ledger.rows(event=Event.RELEASE) if begins_watch(row)}
    ends = {
        release_watched(row): _time(row)
        for event in (Event.WATCHED, Event.ROLLBACK) for row in desk.ledger.rows(event=event)
    }
    stretches = [*((began, ends.get(release, now)) for release, began in releases.items()), *desk.tested]
    return passed.total_seconds() - sum(
        max(0.0, (end - max(began, since)).total_seconds()) for began, end in stretches
    )


def _ask(desk: ReleaseDesk) -> Row:
    """The NOMINATED row: from here on k, level, rules, models and splits are fixed."""
    ledger, bounds = desk.ledger, desk.bounds()
    working, stable = ledger.channel(Channel.WORKING), ledger.channel(Channel.STABLE)
    nominations = Nominations.of(ledger)
    rules = gate.Rules(
        k=len(nominations.asked) + 1, alpha=bounds.gate.alpha, d0=bounds.gate.d0,
        least_gain=bounds.gate.least_gain, procedure=gate.Procedure(bounds.gate.procedure),
        releases=sum(row.verdict == Verdict.PROMOTED for row in nominations.answered.values()),
        margins={
            task.name: bounds.guards.of(task.name) for task in desk.tasks if task.role == "guard" and task.guard_items
        },
    )
    return ledger.append(Entry(
        Event.NOMINATED, f"nomination {rules.k}: working asks to become stable", base=stable, result=working,
        evidence={
            **rules.to_json(), "vault": desk.seals.vault, "guard": desk.seals.guard, "seal": desk.seals.seal,
            "bounds": bounds.digest, "batch": desk.batch, "tasks": [task.to_json() for task in desk.tasks],
            "approval": bounds.gate.approval, **_items_of(desk, bounds, rules.k),
            "protected": protected.digests(bounds, desk.registry, _sealed_by(desk)),
        },
    ))


def _items_of(desk: ReleaseDesk, bounds: Bounds, k: int) -> JsonObject:
    """What kind of items the nomination is judged on, and for new ones the commitment to what will be dealt."""
    dealing = [task.name for task in desk.tasks if task.role == "target" and task.vault_items and can_deal(task)]
    if bounds.gate.items == "vault" or not dealing:
        return {"items": "vault"}
    return {
        "items": "fresh", "dealing": dealing,
        "commitment": gate.commitment_of(sealed_seed(desk.registry.path(desk.seals.vault), "gate", k)),
    }
def _examined(desk: ReleaseDesk, row: Row, answer: Answer) -> Answer:
    """The answer once it is known that nothing protected has changed, with the readings past a warning level."""
    bounds = desk.bounds()
    warnings = bounds.warnings(of_release({**row.evidence, **answer.evidence}))
    evidence = answer.evidence | ({"warnings": warnings} if warnings else {})
    before = row.evidence.get("protected")          # absent where an older version of the program nominated
    refusal = protected.change(before, protected.digests(bounds, desk.registry, _sealed_by(desk))) if before else None
    if refusal is None:
        return Answer(answer.verdict, answer.reason, evidence)
    return Answer(Verdict.REFUSED, str(refusal), {**evidence, "refusal": refusal.to_json()})


def _sealed_by(desk: ReleaseDesk) -> dict[str, str]:
    return {"vault": desk.seals.vault, "guard": desk.seals.guard, "seal": desk.seals.seal}


def _answer(desk: ReleaseDesk, row: Row, spent: list[Cost]) -> Answer:
    """Everything a nomination has to pass, the cheap first."""
    late = stale(desk.ledger, row)
    if late:
        return Answer(Verdict.REFUSED, late, {})
    held_up = _held_up(desk)
    if held_up:
        return held_up
    measured: JsonObject = {}
    for check in (_drift, _noise, _serving):
        refusal, found = check(desk, row, spent)
        measured |= found
        if refusal:
            return Answer(Verdict.REFUSED, str(refusal), {**measured, "refusal": refusal.to_json()})
    dealt = _deal(desk, row, spent)
    spec = _gate_spec(desk, row, dealt.get("dealt"))
    result = _run(desk, spec, spent)
    scores = {"scores": result.outputs["scores"]} if "scores" in result.outputs else {}
    evidence = {**measured, **result.values, **dealt, **scores, "job": spec.digest}
    decision = result.values["decision"]
    if decision == "canary_failed":
        junk = _first_of(result.values["canaries"])
        return Answer(Verdict.REFUSED, f"behaviour.canaries: verifiers pay for junk: {junk}", evidence)
    if decision != gate.Decision.RELEASE:
        return Answer(Verdict.REJECTED, _in_words(result.values), evidence)
    return Answer(Verdict.PROMOTED, _in_words(result.values), evidence)


def _held_up(desk: ReleaseDesk) -> Answer | None:
    """While one nomination waits for the operator, none is judged. It is asked all the same, and its number is spent:
    the vault let the waiting one pass, so what comes next must not depend on it.
    """
    waiting = Nominations.of(desk.ledger).waiting
    if waiting is None:
        return None
    reason = f"nomination {waiting.evidence['k']} waits for the operator (row {waiting.id})"
    return Answer(Verdict.REFUSED, reason, {"held_up_by": waiting.id})


def _deal(desk: ReleaseDesk, row: Row, spent: list[Cost]) -> JsonObject:
    """New items for this nomination alone, where it has any: what was dealt, and the seed it was committed to."""
    if row.evidence.get("items") != "fresh":
        return {}
    seed = sealed_seed(desk.registry.path(str(row.evidence["vault"])), "gate", int(row.evidence["k"]))
    counts = {task["name"]: task["vault_items"] for task in row.evidence["tasks"]}
    spec = deal_spec(desk, row, row.evidence["dealing"], counts, seed)
    return {"dealt": _run(desk, spec, spent).outputs["vault"], "seed": seed}


def deal_spec(desk: ReleaseDesk, row: Row, names: Collection[str], counts: Mapping[str, int], seed: int) -> JobSpec:
    """The job that deals new items of some tasks of a nomination."""
    tasks = [task for task in row.evidence["tasks"] if task["name"] in names]
    inputs = {"seal": str(row.evidence["seal"]), **{f"data:{name}": digest for name, digest in desk.data.items()}}
    return JobSpec("deal", inputs, {"tasks": tasks, "count": {name: counts[name] for name in names}}, seed, desk.code)


def _drift(desk: ReleaseDesk, row: Row, spent: list[Cost]) -> tuple[Refusal | None, JsonObject]:
    """Model limits and both families of drift. Evidence: the drift from each."""
    bounds = desk.bounds()
    first = reference(desk.ledger) or str(row.base)
    compared: list[tuple[str, str, DriftBounds]] = [
        ("reference", first, bounds.drift.reference), ("stable", str(row.base), bounds.drift.stable),
    ]
    evidence: JsonObject = {}
    for name, earlier, limits in compared:
        params = {"probe_items": PROBE_ITEMS, "probe_seed": desk.seed, "tasks": row.evidence["tasks"]}
        inputs = {"base": earlier, "result": str(row.result), "seal": str(row.evidence["seal"])}
        values = _run(desk, JobSpec("measure", inputs, params, 0, desk.code), spent).values
        evidence |= {"model": values["model"], f"drift_{name}": values["drift"]}
        refusal = bounds.accept(values["model"], values["drift"], limits, f"drift.{name}")
        if refusal:
            return refusal, evidence
        evidence |= {key: values[key] for key in ("calibration",) if key in values} | {"model": values["model"]}
    refusal, found = conditions.of_week(desk.ledger, _time(row), evidence["drift_stable"], bounds)
    return refusal or conditions.calibrated(evidence, bounds), evidence | found


def _serving(desk: ReleaseDesk, row: Row, spent: list[Cost]) -> tuple[Refusal | None, JsonObject]:
    """What serving the model costs against the stable one, measured once."""
    params = {"probe_items": SERVED_ITEMS, "probe_seed": desk.seed, "tasks": row.evidence["tasks"]}
    inputs = {"new": str(row.result), "old": str(row.base), "seal": str(row.evidence["seal"])}
    values = _run(desk, JobSpec("serve", inputs, params, 0, desk.code), spent).values
    return conditions.served(values, desk.bounds()), {"serving": values}


def _noise(desk: ReleaseDesk, row: Row, spent: list[Cost]) -> tuple[Refusal | None, JsonObject]:
    """The A/A test of the stable model, unless it is known from the daemon's start or an earlier nomination."""
    evidence = row.evidence
    spec = noise_spec(str(row.base), _sealed(row), evidence["tasks"], evidence["batch"], _time(row), desk.code)
    values = _run(desk, spec, spent).values
    return too_noisy(values, desk.bounds()), {"aa": values}


def _gate_spec(desk: ReleaseDesk, row: Row, dealt: str | None) -> JobSpec:
    names = ("k", "alpha", "d0", "futility", "margins", "procedure", "releases", "batch", "tasks")
    params: Mapping[str, Any] = {name: row.evidence[name] for name in names if name in row.evidence}
    inputs = {"model:new": str(row.result), "model:old": str(row.base), **_sealed(row)}
    return JobSpec("gate", inputs | ({"dealt": dealt} if dealt else {}), params, 0, desk.code)


def _sealed(row: Row) -> dict[str, str]:
    return {"vault": row.evidence["vault"], "guard": row.evidence["guard"]}


def _run(desk: ReleaseDesk, spec: JobSpec, spent: list[Cost]) -> JobResult:
    """One job. Raises JobFailed."""
    result = desk.runner.run(spec, timeout_seconds=desk.bounds().job_seconds)
    spent.append(result.cost)
    return result


def _in_words(values: JsonObject) -> str:
    evidence = f"evidence {values['e']:.3g} of {values['threshold']:.3g} needed, {values['n']} vault items"
    failed = [name for name, found in values["guards"].items() if not found["passed"]]
    return {
        gate.Decision.RELEASE: f"better on the vault and no guard lost: {evidence}",
        gate.Decision.FUTILE: f"no gain worth having on the vault: {evidence}",
        gate.Decision.UNDECIDED: f"not shown to be better on the vault: {evidence}",
        gate.Decision.GUARD_FAILED: f"better on the vault, but not shown to hold on {', '.join(failed)}: {evidence}",
    }[gate.Decision(values["decision"])]


def _first_of(failures: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{task}: {found[0]}" for task, found in sorted(failures.items()))


def _time(row: Row) -> datetime:
    moment = datetime.fromisoformat(row.time)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
