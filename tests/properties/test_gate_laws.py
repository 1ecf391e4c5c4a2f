"""Laws of the e-process and the gate that hold for whatever differences come."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safety.eprocess import EProcess, futility_of
from safety.gate import Decision, Rules, decide, recompute

DIFFERENCES = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]) | st.floats(-1, 1), max_size=60)
SCORES = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), max_size=120)


@given(DIFFERENCES, st.floats(-0.9, 0.9))
def test_evidence_is_never_negative_and_one_item_never_more_than_doubles_it(stream: list[float], d0: float) -> None:
    process = EProcess(d0)
    before = process.e
    for difference in stream:
        now = process.add(difference)
        assert now >= 0.0
        assert now <= before * (1 + 0.9 * (1 - d0) / (1 + d0)) * (1 + 1e-9)
        before = now


@given(st.floats(-0.9, 0.9), st.floats(0, 1))
def test_evidence_does_not_grow_on_average_while_the_hypothesis_holds(d0: float, spread: float) -> None:
    """One step from a two-point law with mean d0: the expected evidence is what it was."""
    low, high = d0 - spread * (1 + d0), d0 + spread * (1 - d0)
    if high - low < 1e-9:
        return
    up = (d0 - low) / (high - low)
    start = EProcess(d0).extend([])
    ends = [EProcess(d0).add(min(1.0, max(-1.0, end))) for end in (low, high)]
    assert (1 - up) * ends[0] + up * ends[1] == pytest.approx(start, rel=1e-6)


@given(DIFFERENCES, st.randoms())
def test_the_order_of_the_items_does_not_change_the_evidence(stream: list[float], random) -> None:  # type: ignore[no-untyped-def]
    mixed = list(stream)
    random.shuffle(mixed)
    assert EProcess(0.02).extend(mixed) == pytest.approx(EProcess(0.02).extend(stream), rel=1e-9)


@given(DIFFERENCES, st.integers(0, 60))
def test_a_process_cut_anywhere_and_read_back_continues_alike(stream: list[float], cut: int) -> None:
    whole, part = EProcess(-0.03), EProcess(-0.03)
    whole.extend(stream)
    part.extend(stream[:cut])
    back = EProcess.from_json(json.loads(json.dumps(part.to_json())))
    back.extend(stream[cut:])
    assert back == whole


@given(st.floats(-1, 1), st.floats(0, 0.9))
def test_futility_stays_in_the_range_an_e_process_takes(difference: float, least: float) -> None:
    assert -1.0 <= futility_of(difference, least) <= 1.0


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES, st.integers(1, 30), st.sampled_from([0.0, 0.01]))
def test_every_decision_recomputes_from_the_scores_it_was_made_on(
    targets: list[tuple[float, float]], guard: list[tuple[float, float]], k: int, d0: float
) -> None:
    rules = Rules(k, 0.2, d0, 0.05, {"guard": 0.1})
    scores = {
        "targets": {"new": [n for n, _ in targets], "old": [o for _, o in targets]},
        "guards": {"guard": {"new": [n for n, _ in guard], "old": [o for _, o in guard]}},
    }
    found = decide(rules, [[n - o for n, o in targets]], {"guard": [[n - o for n, o in guard]]})
    assert recompute({**rules.to_json(), **found.to_json()}, scores)
    if found.decision is Decision.RELEASE:
        assert found.e >= rules.threshold
        assert all(g["e"] >= 20 for g in found.guards.values())


@given(SCORES)
def test_futility_never_turns_into_a_release(targets: list[tuple[float, float]]) -> None:
    stream = [n - o for n, o in targets]
    with_futility = decide(Rules(1, 0.05, 0.0, 0.03, {}), [stream], {})
    without = decide(Rules(1, 0.05, 0.0, 0.9, {}), [stream], {})
    assert not (with_futility.decision is Decision.RELEASE and without.decision is not Decision.RELEASE)
