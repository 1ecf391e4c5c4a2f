"""From a nomination to its verdict: the only way in which a model becomes stable, apart from a rollback.

A NOMINATED row fixes k, the level and the rules before anything is measured; the RELEASE row gives the verdict and
moves the channel. What was found in between lies in finished jobs, so a nomination that was interrupted at any point
is found open and finished, with the same k. Invariants: nothing here returns to a loop; which model is nominated, and
when, depends on the search and the operator alone, never on what the vault said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from safety import conditions, gate, protected
from safety.bounds import Bounds, DriftBounds, Refusal
from safety.history import Nominations, reference
from safety.readings import of_release
from safety.yardstick.items import TaskSpec
from state.jobs import JobFailed, JobResult, JobSpec, Runner
from state.ledger import MOST_FRUITLESS_ATTEMPTS, Ledger
from state.records import Channel, Cost, Entry, Event, JsonObject, Row, Verdict
from state.registry import Registry

DAYS_BETWEEN_NOISE_TESTS = 7
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


@dataclass(frozen=True, slots=True)
class Answer:
    """The verdict on a nomination, before it is a row."""

    verdict: Verdict
    reason: str
    evidence: JsonObject


def nominate(desk: ReleaseDesk) -> Row | None:
    """Ask for working to become stable, or finish what was asked; returns the RELEASE row, None when nothing was due.

    Parked passes through and leaves the nomination open.
    """
    with desk.ledger.deciding:
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
        stale = _stale(desk, row) if answer.verdict is Verdict.PROMOTED else None
        if stale:
            answer = Answer(Verdict.REFUSED, stale, answer.evidence)
        answer = _examined(desk, row, answer)
        return _close(desk, row, answer, sum(spent, Cost()))


def due(desk: ReleaseDesk) -> bool:
    """Whether there is a nomination to finish or to ask for."""
    return Nominations.of(desk.ledger).open is not None or hindrance(desk) is None


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
    """The bound on rate that holds, as text. Counted are nominations, so the vault's answers decide nothing here."""
    rate, now = bounds.rate, desk.now()
    day = [row for row in nominations.asked if now - _time(row) < timedelta(days=1)]
    if len(day) >= rate.releases_per_day:
        return f"rate.releases_per_day: {len(day)} nominations in the last 24 hours"
    last = nominations.last
    if last is None:
        return None
    ended = nominations.answered.get(last.id, last)         # how long the gate took is the vault's word: it must not
    if now - _time(ended) < timedelta(seconds=rate.dwell_seconds):                  # decide which model comes next
        return f"rate.dwell_seconds: less than {rate.dwell_seconds:g} seconds since the last nomination was answered"
    needed = rate.cycles_between_nominations
    closed = 0
    for row in desk.ledger.rows(after=last.id, event=Event.CLOSED):
        closed += row.parent is None
        if closed >= needed:
            break
    return None if closed >= needed else f"rate.cycles_between_nominations: {closed} of {needed} cycles have closed"


def _ask(desk: ReleaseDesk) -> Row:
    """The NOMINATED row: from here on k, level, rules, models and splits are fixed."""
    ledger, bounds = desk.ledger, desk.bounds()
    working, stable = ledger.channel(Channel.WORKING), ledger.channel(Channel.STABLE)
    rules = gate.Rules(
        k=len(Nominations.of(ledger).asked) + 1, alpha=bounds.gate.alpha, d0=bounds.gate.d0,
        least_gain=bounds.gate.least_gain,
        margins={
            task.name: bounds.guards.of(task.name) for task in desk.tasks if task.role == "guard" and task.guard_items
        },
    )
    return ledger.append(Entry(
        Event.NOMINATED, f"nomination {rules.k}: working asks to become stable", base=stable, result=working,
        evidence={
            **rules.to_json(), "vault": desk.seals.vault, "guard": desk.seals.guard, "seal": desk.seals.seal,
            "bounds": bounds.digest, "batch": desk.batch, "tasks": [task.to_json() for task in desk.tasks],
            "protected": protected.digests(bounds, desk.registry, _sealed_by(desk)),
        },
    ))


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
    stale = _stale(desk, row)
    if stale:
        return Answer(Verdict.REFUSED, stale, {})
    measured: JsonObject = {}
    for check in (_drift, _noise, _serving):
        refusal, found = check(desk, row, spent)
        measured |= found
        if refusal:
            return Answer(Verdict.REFUSED, str(refusal), {**measured, "refusal": refusal.to_json()})
    spec = _gate_spec(desk, row)
    result = _run(desk, spec, spent)
    scores = {"scores": result.outputs["scores"]} if "scores" in result.outputs else {}
    evidence = {**measured, **result.values, **scores, "job": spec.digest}
    decision = result.values["decision"]
    if decision == "canary_failed":
        junk = _first_of(result.values["canaries"])
        return Answer(Verdict.REFUSED, f"behaviour.canaries: verifiers pay for junk: {junk}", evidence)
    if decision != gate.Decision.RELEASE:
        return Answer(Verdict.REJECTED, _in_words(result.values), evidence)
    return Answer(Verdict.PROMOTED, _in_words(result.values), evidence)


def _stale(desk: ReleaseDesk, row: Row) -> str | None:
    if desk.ledger.channel(Channel.STABLE) != row.base:
        return "stable has moved since the nomination"
    if row.result in desk.ledger.latched():
        return "the nominated model was latched since"
    return None


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
        evidence[f"drift_{name}"] = values["drift"]
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
    """The A/A test of the stable model, once a week and once for each stable model: its job is kept by those."""
    week = _time(row).toordinal() // DAYS_BETWEEN_NOISE_TESTS
    params = {"aa": True, "batch": row.evidence["batch"], "tasks": row.evidence["tasks"], "week": week}
    inputs = {"model:new": str(row.base), "model:old": str(row.base), **_sealed(row)}
    values = _run(desk, JobSpec("gate", inputs, params, 0, desk.code), spent).values
    allowed = desk.bounds().gate.max_noise
    refusal = Refusal("gate.max_noise", values["noise"], allowed) if values["noise"] > allowed else None
    return refusal, {"aa": values}


def _gate_spec(desk: ReleaseDesk, row: Row) -> JobSpec:
    names = ("k", "alpha", "d0", "futility", "margins", "batch", "tasks")
    params: Mapping[str, Any] = {name: row.evidence[name] for name in names}
    inputs = {"model:new": str(row.result), "model:old": str(row.base), **_sealed(row)}
    return JobSpec("gate", inputs, params, 0, desk.code)


def _sealed(row: Row) -> dict[str, str]:
    return {"vault": row.evidence["vault"], "guard": row.evidence["guard"]}


def _run(desk: ReleaseDesk, spec: JobSpec, spent: list[Cost]) -> JobResult:
    """One job. Raises JobFailed."""
    result = desk.runner.run(spec, timeout_seconds=desk.bounds().job_seconds)
    spent.append(result.cost)
    return result


def _close(desk: ReleaseDesk, row: Row, answer: Answer, cost: Cost) -> Row:
    promoted = answer.verdict is Verdict.PROMOTED
    fixed = {name: row.evidence[name] for name in ("k", "alpha", "alpha_k", "threshold", "d0", "futility", "margins")}
    entry = Entry(
        Event.RELEASE, answer.reason, verdict=answer.verdict, base=row.base, result=row.result,
        evidence={
            **fixed, **answer.evidence, "nomination": row.id, "vault": row.evidence["vault"],
            "guard": row.evidence["guard"], "code": desk.code, "bounds": desk.bounds().digest,
        },
        cost=cost.to_json(),
    )
    return desk.ledger.append(entry, move=(Channel.STABLE, str(row.result)) if promoted else None)


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
