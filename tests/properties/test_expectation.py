"""Our e-process against an independent one: `expectation` from PyPI, which `make install` installs where it can be.

Its bettor at a fixed fraction multiplies (1 - l) + l E_i for e-values E_i. With E_i = (1 + D_i) / (1 + d0), which has a
mean of at most 1 where E[D] <= d0, that is our product for the bet l; the mean over the bets is its merged e-value.
"""

import random
import sys
from pathlib import Path

import pytest

from safety.eprocess import BETS, EProcess, futility_of
from safety.gate import Rules, decide
from safety.watch import Terms, Watch

PEERS = Path(sys.prefix) / "peers"
sys.path.append(str(PEERS))
try:
    updater = pytest.importorskip("expectation.modules.eprocessupdater")
    hypothesis = pytest.importorskip("expectation.modules.hypothesistesting")
    merging = pytest.importorskip("expectation.modules.merging")
finally:
    sys.path.remove(str(PEERS))


def trajectory(differences: list[float], d0: float) -> list[float]:
    """The evidence after each difference, by the other implementation."""
    products = []
    for bet in BETS:
        config = hypothesis.EProcessConfig(
            betting_strategy=hypothesis.BettingStrategy.CONSERVATIVE, conservative_lambda=bet)
        bettor, process = updater.EProcessUpdater(config), hypothesis.EProcess(config=config)
        for difference in differences:
            bettor.update(process, (1.0 + difference) / (1.0 + d0))
        products.append(process.process_values[1:])
    return [merging.arithmetic_mean_merge(list(column)) for column in zip(*products, strict=True)]


def drawn(seed: int, n: int, gain: float, churn: float = 0.3) -> list[float]:
    chance = random.Random(seed)
    weights = [(churn - gain) / 2, 1 - churn, (churn + gain) / 2]
    return [float(chance.choices((-1, 0, 1), weights)[0]) if seed % 2 else chance.uniform(-1, 1) for _ in range(n)]


@pytest.mark.parametrize("d0", [0.0, 0.02, -0.03, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_the_evidence_agrees_after_every_item(seed: int, d0: float) -> None:
    differences = drawn(seed, 300, 0.05)
    mine = EProcess(d0)
    assert [mine.add(difference) for difference in differences] == pytest.approx(trajectory(differences, d0), rel=1e-9)


def test_the_gate_stops_where_the_other_implementation_does() -> None:
    rules, decisions = Rules(2, 0.3, 0.0, 0.03, {}), set()
    for seed in range(1, 41, 2):
        differences = drawn(seed, 400, 0.1 if seed % 4 == 1 else -0.05)
        found = decide(rules, [differences], {})
        better = [e >= rules.threshold for e in trajectory(differences, 0.0)]
        hopeless = [e >= 20.0 for e in trajectory([futility_of(d, rules.least_gain) for d in differences], 0.0)]
        first = next((n for n in range(400) if better[n] or hopeless[n]), None)
        decisions.add(str(found.decision))
        assert found.n == (400 if first is None else first + 1)
        assert (str(found.decision) == "release") == (first is not None and better[first])
    assert {"release", "futile"} <= decisions


def test_the_watch_rolls_back_at_the_item_of_the_other_implementation() -> None:
    differences = drawn(7, 2000, -0.05, churn=0.15)
    watch = Watch(Terms(0.05, 2000, ("maths",), {}, ""))
    new, old = [max(0.0, d) for d in differences], [max(0.0, -d) for d in differences]
    watch.take({"targets": {"new": new, "old": old}, "guards": {}})
    theirs = trajectory([-d for d in differences], 0.0)
    assert watch.worse == "targets"
    assert watch.processes["targets"].count == 1 + next(n for n, e in enumerate(theirs) if e >= 20.0)
