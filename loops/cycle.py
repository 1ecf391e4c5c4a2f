"""THE story: propose, admit, run, judge, inspect, record, learn. Every self-modification goes through `run_cycle`.

A cycle is named by its parent and ordinal. Running it again finds it in the ledger: a closed one answers with its
outcome, an open one is resumed with the candidate it was opened with. So a parent that is run again after a kill
walks through the same children.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

from loops.loop import Bench, Loop
from safety.bounds import Bounds
from safety.inspection import inspect_model
from state.jobs import JobFailed, Runner
from state.ledger import MOST_FRUITLESS_ATTEMPTS, Ledger
from state.records import Budget, Channel, Cycle, Outcome, Verdict, seed_from

OVERTAKEN = "working was moved while this was tried"


@dataclass(frozen=True, slots=True)
class House:
    """What every cycle works with. `bounds` is asked anew each time: a reload may have tightened them."""

    ledger: Ledger
    runner: Runner
    bounds: Callable[[], Bounds]
    code: str
    seed: int


def run_cycle(
    house: House, loop: Loop, parent: int | None, ordinal: int, base: str, incumbent: str, budget: Budget,
    around: tuple[int, ...] = (),
) -> Outcome:
    """One attempted self-modification, from proposal to verdict.

    `around` holds the ordinals of the cycles around this one, outermost first. Seeds come from them and never from row
    ids, which nominations and operators move.
    """
    ledger, place = house.ledger, (*around, ordinal)
    cycle = ledger.find_cycle(parent, ordinal)
    if cycle is None:
        state = ledger.loop_state(loop.name) or loop.start()
        seed = seed_from(house.seed, loop.name, *place)
        candidate = loop.propose(state, base, incumbent, seed)
        cycle = ledger.open_cycle(parent, ordinal, candidate, state, budget)   # committed before any effect
    if cycle.outcome is not None:
        return cycle.outcome
    refusal = house.bounds().admit(cycle.candidate)
    outcome = refusal.outcome() if refusal else attempt(house, loop, cycle, place)
    with ledger.deciding:                                       # an operator's act comes before this, or after
        if outcome.verdict is Verdict.PROMOTED and overtaken(ledger, cycle):
            outcome = replace(outcome, verdict=Verdict.REJECTED, result=None, reason=OVERTAKEN)
        state = loop.learn(ledger.loop_state(loop.name) or cycle.state, cycle.candidate, outcome)
        return ledger.close_cycle(cycle, outcome, state)        # verdict, state and channel pointer: one transaction


def attempt(house: House, loop: Loop, cycle: Cycle, place: tuple[int, ...]) -> Outcome:
    """Run, judge and inspect. The one broad except of the program: a failure is a verdict with a reason."""
    bench = Bench(
        cycle, house.runner, house.code,
        lambda inner, parent, ordinal, base, incumbent, budget: run_cycle(
            house, inner, parent, ordinal, base, incumbent, budget, place
        ),
        job_seconds=house.bounds().job_seconds, own_seed=seed_from(house.seed, "cycle", *place),
        inside=lambda ordinal: opened_inside(house.ledger, cycle.id, ordinal),
    )
    try:
        if house.ledger.begin_attempt(cycle) > MOST_FRUITLESS_ATTEMPTS:
            raise JobFailed(f"it took the daemon down {MOST_FRUITLESS_ATTEMPTS} times without getting any further")
        outcome = loop.judge(cycle.candidate, loop.run(cycle.candidate, bench))
        if outcome.verdict is Verdict.PROMOTED:
            refusal = inspect_model(house.bounds(), bench.job, cycle.candidate.base, outcome.result)
            outcome = refusal.outcome() if refusal else outcome
    except JobFailed as failure:
        outcome = Outcome(failure.verdict, str(failure))
    except Exception as error:                                            # noqa: BLE001  a failure is a verdict
        outcome = Outcome(Verdict.CRASHED, f"{type(error).__name__}: {error}")
    return outcome.with_cost(bench.spent)


def overtaken(ledger: Ledger, cycle: Cycle) -> bool:
    """Whether an outermost cycle beat a model that an operator has moved working away from since."""
    return cycle.parent is None and ledger.channel(Channel.WORKING) not in (None, cycle.candidate.incumbent)


def opened_inside(ledger: Ledger, parent: int, ordinal: int) -> int:
    """How many cycles were opened inside the one of that name, at any depth."""
    cycle = ledger.find_cycle(parent, ordinal)
    found = 0
    for inner in count():
        if cycle is None or ledger.find_cycle(cycle.id, inner) is None:
            break
        found += 1 + opened_inside(ledger, cycle.id, inner)
    return found
