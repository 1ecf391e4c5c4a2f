"""THE story: propose, admit, run, judge, inspect, record, learn. Every self-modification goes through `run_cycle`.

A cycle is named by its parent and ordinal. Running it again finds it in the ledger: a closed one answers with its
outcome, an open one is resumed with the candidate it was opened with. So a parent that is run again after a kill
walks through the same children. Several threads may run cycles: a loop's state changes only where it proposes and
where it learns, one cycle at a time; everything between overlaps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeVar

from loops.loop import Bench, Loop
from safety.admission import step_of
from safety.bounds import Bounds, Refusal
from safety.inspection import inspect_model
from safety.readings import of_change, of_model
from state.errors import HostError
from state.jobs import JobFailed, Runner
from state.ledger import MOST_FRUITLESS_ATTEMPTS, Ledger
from state.records import Budget, Candidate, Channel, Cycle, Event, JsonObject, Outcome, Verdict, seed_from

NOT_PROPOSED = "not_proposed"
OVERTAKEN = "working was moved while this was tried"

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class House:
    """What every cycle works with. `bounds` is asked anew each time: a reload may have tightened them. `forecast` tells
    what is known of a change's result before it is made (`safety.layers`).
    """

    ledger: Ledger
    runner: Runner
    bounds: Callable[[], Bounds]
    code: str
    seed: int
    forecast: Callable[[JsonObject], JsonObject] = lambda change: {}


def run_cycle(
    house: House, loop: Loop, parent: int | None, ordinal: int, base: str, incumbent: str, budget: Budget,
    around: tuple[int, ...] = (),
) -> Outcome:
    """One attempted self-modification, from proposal to verdict.

    `around` holds the ordinals of the cycles around this one, outermost first. Seeds come from them and never from row
    ids, which nominations and operators move.
    """
    cycle = propose_cycle(house, loop, parent, ordinal, base, incumbent, budget, around)
    rivals: tuple[str, ...] = ()                # what became working meanwhile, and so has to be beaten as well
    while cycle.outcome is None:
        refusal, warnings = admitted(house, cycle.candidate)
        outcome = refusal.outcome() if refusal else attempt(house, loop, cycle, (*around, ordinal), rivals)
        outcome = outcome.with_warnings(warnings)
        with house.ledger.deciding:                             # an operator's act comes before this, or after
            rival = overtaking(house.ledger, cycle, outcome)
            if rival is None:
                return close_cycle(house.ledger, loop, cycle, outcome)
        rivals = (*rivals, rival)
        cycle = replace(cycle, candidate=replace(cycle.candidate, incumbent=rival))
    return cycle.outcome


def admitted(house: House, candidate: Candidate) -> tuple[Refusal | None, list[str]]:
    """The bound that refuses the candidate before anything is run, or None, and what is past a warning level."""
    if NOT_PROPOSED in candidate.change:
        return None, []
    bounds, came_from = house.bounds(), house.ledger.merge_of(candidate.incumbent)
    readings = of_change(candidate.change, step_of(candidate.change, came_from))
    refusal = bounds.admit(candidate, came_from)
    if refusal is None:
        forecast = house.forecast(candidate.change)
        refusal, readings = bounds.foresee(forecast), {**readings, **of_model(forecast)}
    return refusal, bounds.warnings(readings)


def propose_cycle(
    house: House, loop: Loop, parent: int | None, ordinal: int, base: str, incumbent: str, budget: Budget,
    around: tuple[int, ...] = (),
) -> Cycle:
    """The cycle of that name; a new one is opened with what the loop proposes."""
    ledger, seed = house.ledger, seed_from(house.seed, loop.name, *around, ordinal)
    with ledger.deciding:
        known = ledger.find_cycle(parent, ordinal)
        if known is not None:
            return known
        state = ledger.loop_state(loop.name) or loop.start()
        in_flight = [cycle.candidate for cycle in ledger.open_cycles() if cycle.loop is loop.name]
        candidate = guarded(lambda: loop.propose(state, base, incumbent, seed, in_flight))
        if isinstance(candidate, Outcome):
            candidate = Candidate(loop.name, {NOT_PROPOSED: candidate.reason}, base, incumbent)
        return ledger.open_cycle(parent, ordinal, candidate, state, budget)   # committed before any effect


def attempt(
    house: House, loop: Loop, cycle: Cycle, place: tuple[int, ...], rivals: tuple[str, ...] = ()
) -> Outcome:
    """Run, judge and inspect, against the last of `rivals` on items of its own where there are any."""
    bench = Bench(
        cycle, house.runner, house.code,
        lambda inner, parent, ordinal, base, incumbent, budget: run_cycle(
            house, inner, parent, ordinal, base, incumbent, budget, place
        ),
        job_seconds=house.bounds().job_seconds, own_seed=seed_from(house.seed, "cycle", *place, *rivals),
        inside=lambda ordinal: opened_inside(house.ledger, cycle.id, ordinal),
    )
    outcome = guarded(lambda: judged(house, loop, cycle, bench)).with_cost(bench.spent)
    return replace(outcome, evidence={**outcome.evidence, "rivals": list(rivals)}) if rivals else outcome


def judged(house: House, loop: Loop, cycle: Cycle, bench: Bench) -> Outcome:
    """What came of the candidate. Raises JobFailed."""
    candidate = cycle.candidate
    if NOT_PROPOSED in candidate.change:
        raise JobFailed(f"nothing was proposed: {candidate.change[NOT_PROPOSED]}")
    if house.ledger.begin_attempt(cycle) > MOST_FRUITLESS_ATTEMPTS:
        raise JobFailed(f"it took the daemon down {MOST_FRUITLESS_ATTEMPTS} times without getting any further")
    outcome = loop.judge(candidate, loop.run(candidate, bench))
    if outcome.verdict is not Verdict.PROMOTED:
        return outcome
    refusal, readings = inspect_model(
        house.bounds(), bench.job, candidate.base, outcome.result, candidate.change
    )
    return (refusal.outcome() if refusal else outcome).with_warnings(house.bounds().warnings(readings))


def overtaking(ledger: Ledger, cycle: Cycle, outcome: Outcome) -> str | None:
    """The model that another cycle made working while this outermost one won against an older; None if none did.

    Where an operator moved working, there is nothing to beat any more: `close_cycle` rejects.
    """
    if not displaced(ledger, cycle, outcome) or moved_by_operator(ledger, cycle):
        return None
    return ledger.channel(Channel.WORKING)


def displaced(ledger: Ledger, cycle: Cycle, outcome: Outcome) -> bool:
    """Whether an outermost cycle won against a model that is not working any more."""
    wins = cycle.parent is None and outcome.verdict is Verdict.PROMOTED
    return wins and ledger.channel(Channel.WORKING) not in (None, cycle.candidate.incumbent)


def moved_by_operator(ledger: Ledger, cycle: Cycle) -> bool:
    """Whether an operator moved working since the cycle was opened."""
    return any(
        str(Channel.WORKING) in row.evidence.get("moves", {})
        for event in (Event.ROLLBACK, Event.OPERATOR) for row in ledger.rows(after=cycle.id, event=event)
    )


def close_cycle(ledger: Ledger, loop: Loop, cycle: Cycle, outcome: Outcome) -> Outcome:
    """Let the loop learn, and record verdict, state and channel pointer in one transaction."""
    if displaced(ledger, cycle, outcome):
        outcome = replace(outcome, verdict=Verdict.REJECTED, result=None, reason=OVERTAKEN)
    if NOT_PROPOSED in cycle.candidate.change:
        return ledger.close_cycle(cycle, outcome, None)
    state = guarded(lambda: loop.learn(ledger.loop_state(loop.name) or cycle.state, cycle.candidate, outcome))
    if isinstance(state, Outcome):
        failure = replace(state, reason=f"its loop could not learn from {outcome.verdict}: {state.reason}")
        return ledger.close_cycle(cycle, failure.with_cost(outcome.cost), None)
    return ledger.close_cycle(cycle, outcome, state)


def guarded(work: Callable[[], Made]) -> Made | Outcome:
    """The one broad except of the program: a failure is a verdict with a reason.

    What the host could not do (no space, a failing disk) is no candidate's fault: it passes, the service ends, and the
    cycle is resumed. One that ends the service every time is closed by its attempts.
    """
    try:
        return work()
    except JobFailed as failure:
        return Outcome(failure.verdict, str(failure))
    except HostError:
        raise
    except Exception as error:                                            # noqa: BLE001  see above
        return Outcome(Verdict.CRASHED, f"{type(error).__name__}: {error}")


def opened_inside(ledger: Ledger, parent: int, ordinal: int) -> int:
    """How many cycles were opened inside the one of that name, at any depth."""
    cycle = ledger.find_cycle(parent, ordinal)
    found = 0
    for inner in count():
        if cycle is None or ledger.find_cycle(cycle.id, inner) is None:
            break
        found += 1 + opened_inside(ledger, cycle.id, inner)
    return found
