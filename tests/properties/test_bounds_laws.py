"""Loosening and tightening, over every key there is: the answers have the laws of an order."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safety.admission import step_of
from safety.bounds import DEFAULT_TOML, Bounds, load_bounds, loosened, tightened
from safety.limits import Limit, Looser, limits_of
from safety.readings import of_change
from state.records import Candidate, LoopName

LIMITS = {name: (value, about) for name, value, about in limits_of(Bounds())}
NUMBERS = [name for name, (value, _) in LIMITS.items() if type(value) in (int, float)]
WORDS = ("a", "b", "c")


def values(default: Any, about: Limit) -> st.SearchStrategy[Any]:
    """What a key can be set to."""
    if about.choices and not isinstance(default, tuple):
        return st.sampled_from(about.choices)
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, str):
        return st.sampled_from(WORDS)
    if isinstance(default, tuple):
        return st.lists(st.sampled_from(WORDS), unique=True).map(tuple)
    if isinstance(default, dict):
        return st.dictionaries(st.sampled_from(WORDS), st.floats(0.01, 0.5))
    low, high = max(about.low, -1e9), min(about.high, 1e9)
    if isinstance(default, int):
        return st.integers(int(low), int(high))
    return st.floats(low, high, exclude_min=about.above_low)


def trees(section: Any = None, prefix: str = "") -> st.SearchStrategy[Any]:
    """Whole bounds with every key drawn on its own."""
    section = section or Bounds()
    drawn = {}
    for item in fields(section):
        default = getattr(section, item.name)
        if is_dataclass(default):
            drawn[item.name] = trees(default, f"{prefix}{item.name}.")
        elif "limit" in item.metadata:
            drawn[item.name] = values(default, item.metadata["limit"])
    return st.builds(type(section), **drawn)


def named(lines: list[str]) -> set[str]:
    return {line.partition(":")[0] for line in lines}


@given(trees(), trees())
def test_what_one_way_calls_looser_the_other_calls_tighter(old: Bounds, new: Bounds) -> None:
    assert named(loosened(old, new)) == named(tightened(new, old))
    assert named(tightened(old, new)) == named(loosened(new, old))
    assert not loosened(old, old)
    assert not tightened(new, new)


@given(trees(), trees())
def test_a_key_that_differs_is_looser_or_tighter_and_both_only_where_neither_allows_all_of_the_other(
    old: Bounds, new: Bounds
) -> None:
    before, after = ({name: value for name, value, _ in limits_of(tree)} for tree in (old, new))
    looser, tighter = named(loosened(old, new)), named(tightened(old, new))
    for name, (_, about) in LIMITS.items():
        if name == "guards.margins":                # what is not named there has the margin of all
            continue
        same = sorted(before[name]) == sorted(after[name]) if isinstance(before[name], tuple) else (
            before[name] == after[name])
        assert (name in looser or name in tighter) != same, name
        if about.looser in (Looser.UP, Looser.DOWN):
            assert not (name in looser and name in tighter), name
        if about.looser is Looser.LONE:
            assert (name in looser) == (name in tighter) == (not same), name


@given(trees(), trees(), trees())
def test_two_steps_that_only_tighten_are_together_one_that_only_tightens(a: Bounds, b: Bounds, c: Bounds) -> None:
    if not loosened(a, b) and not loosened(b, c):
        assert not loosened(a, c)


@given(st.data())
def test_each_number_has_the_direction_that_it_declares(data: st.DataObject) -> None:
    numbers = [name for name, (value, about) in LIMITS.items()
               if type(value) in (int, float) and len(about.choices) != 1]
    name = data.draw(st.sampled_from(numbers))
    value, about = LIMITS[name]
    other = data.draw(values(value, about).filter(lambda found: found != value))
    body = Bounds().to_json()
    place = body
    *sections, key = name.split(".")
    for section in sections:
        place = place[section]
    place[key] = other
    looser = named(loosened(Bounds(), Bounds.from_json(body)))
    up = about.looser is Looser.UP
    assert (name in looser) == (about.looser is Looser.LONE or (other > value) == up)


@given(st.sets(st.sampled_from(sorted({name.partition(".")[0] for name in LIMITS}))))
def test_bounds_recorded_before_a_family_was_known_allow_what_its_defaults_allow(unknown: set[str]) -> None:
    old = Bounds.from_json({name: body for name, body in Bounds().to_json().items() if name not in unknown | {"warn"}})
    assert old == Bounds()
    assert not loosened(old, Bounds())


@given(st.sets(st.sampled_from(sorted(LIMITS))))
def test_bounds_recorded_before_single_keys_were_known_are_not_looser_for_it(unknown: set[str]) -> None:
    body = Bounds().to_json()
    for name in unknown:
        place = body
        *sections, key = name.split(".")
        for section in sections:
            place = place[section]
        del place[key]
    assert Bounds.from_json(body) == Bounds()


@given(st.dictionaries(st.sampled_from(NUMBERS), st.floats(0, 1)))
def test_warning_levels_loosen_nothing_and_are_no_other_bounds(levels: dict[str, float]) -> None:
    warned = Bounds.from_json({**Bounds().to_json(), "warn": levels})
    assert warned.warn == levels
    assert not loosened(Bounds(), warned)
    assert not loosened(warned, Bounds())
    assert warned.digest == Bounds().digest


def test_the_text_of_the_defaults_sets_every_key(tmp_path: Path) -> None:
    (tmp_path / "bounds.toml").write_text(DEFAULT_TOML)
    assert load_bounds(tmp_path / "bounds.toml") == Bounds()
    for name in LIMITS:
        section, _, key = name.rpartition(".")
        assert f"[{section}]\n" in DEFAULT_TOML
        assert f"\n{key} = " in DEFAULT_TOML


@pytest.mark.parametrize("name", LIMITS)
def test_every_key_says_what_it_does_when_it_is_met(name: str) -> None:
    about = LIMITS[name][1]
    words = ("refuses", "holds", "pauses", "stops", "kills", "rolls back", "lets what passed wait", "separates")
    assert about.action.startswith(words)
    assert about.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from(("merge", "keep", "linear", "p")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("p", "rank")), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("kind", "operator", "base", "parents", "weights", "t", "density", "mix", "recipe", "shaping", "steps")
PARTS = ("stage", "learning_rate", "steps", "batch", "group", "adapter", "weights", "strength")
BODIES = st.dictionaries(st.sampled_from(PARTS), JSON | st.just("grpo"), max_size=5)
CHANGES = st.dictionaries(st.sampled_from(KEYS), JSON | BODIES, max_size=8)


@given(st.sampled_from(LoopName), CHANGES, CHANGES, st.booleans())
def test_no_change_however_odd_raises_where_it_is_looked_at(
    loop: LoopName, change: dict[str, Any], incumbent: dict[str, Any], same: bool
) -> None:
    genes = {key: incumbent[key] for key in ("weights", "t") if key in incumbent}
    came_from = {**change, **genes} if same else incumbent
    step = step_of(change, came_from)
    assert step is None or step >= 0.0
    Bounds(warn={"search.max_weight": 1.0, "pipeline.max_batch": 1.0}).warnings(of_change(change, step))
    Bounds().admit(Candidate(loop, change, "b", "i"), came_from)


GENES = st.floats(0.0, 2.5)


@given(st.integers(1, 3), st.integers(1, 2), st.data())
def test_the_step_between_two_merges_is_the_same_both_ways_and_none_to_itself(
    groups: int, parents: int, data: st.DataObject
) -> None:
    def merge(count: int) -> dict[str, Any]:
        table = st.lists(st.lists(GENES, min_size=3, max_size=3), min_size=count, max_size=count)
        weights = data.draw(st.lists(table, min_size=parents, max_size=parents))
        return {"kind": "merge", "operator": "linear", "base": "b", "parents": ["p"] * parents, "weights": weights}

    one, other, coarse = merge(groups), merge(groups), merge(1)
    assert step_of(one, one) == 0.0
    assert step_of(one, other) == step_of(other, one) == max(
        abs(a - b) for t, u in zip(one["weights"], other["weights"], strict=True)
        for row, was in zip(t, u, strict=True) for a, b in zip(row, was, strict=True))
    spread = {**coarse, "weights": [table * groups for table in coarse["weights"]]}
    assert step_of(one, coarse) == step_of(one, spread) == step_of(coarse, one)
    assert step_of(one, {**other, "operator": "ties"}) is None
    assert step_of(one, None) is None
