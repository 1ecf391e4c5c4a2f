"""The gate's study, shortened: what docs/studies/gate.md claims, asserted on fewer lives of the same simulation."""

from __future__ import annotations

from collections.abc import Callable

from studies import gate

Record = Callable[[str, object], None]


def test_where_nothing_is_better_the_gate_releases_in_fewer_than_alpha_of_lives(record_property: Record) -> None:
    ours, *others = gate.null_world(lives=24, nominations=250, seed=11)
    record_property("lives with a false release", ours.false_lives[0])
    assert all(life.nominations == 250 for life in ours.lives)
    assert ours.false_lives[0] <= gate.ALPHA * len(ours.lives)
    by_name = {figures.name: figures for figures in others}
    assert by_name["an e-process on every step"].false_lives[0] <= gate.ALPHA * len(ours.lives)
    for name in ("score > champion", "McNemar at .05 each time", "the Ladder"):
        assert by_name[name].false_lives[0] >= 0.7 * len(ours.lives)


def test_where_gains_are_rare_stable_keeps_nearly_all_that_the_loose_channel_finds(record_property: Record) -> None:
    ours, *others = gate.world_of_gains(lives=10, candidates=1_500, seed=12)
    share, _ = gate.share_of_loose_gain(ours)
    record_property("share of the loose gain", round(share, 3))
    assert share >= 0.9
    record_property("lives with a false release", ours.false_lives[0])
    assert ours.false_lives[0] <= 1                  # ten lives bound no share; the full study has a hundred
    by_name = {figures.name: figures for figures in others}
    assert ours.mean("gain")[0] > by_name["an e-process on every step"].mean("gain")[0]
    assert by_name["score > champion"].mean("false")[0] > 5
