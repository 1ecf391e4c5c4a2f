"""Levels of difficulty: how hard the questions are that a segment of reinforcement asks.

A target's levels are configs of its generator, from easy to hard, and its own config is the last. A group of answers
teaches by its spread, p (1 - p) at success p, and nothing where all are right or all are wrong. So the hardest level is
asked that has enough of it; what is not known of a level follows from its neighbours, success falling with difficulty.
Only the questions change: the probe of q, comparisons and the sealed items keep the target as it is. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

from safety.yardstick.items import TaskError, TaskSpec
from state.records import JsonObject, digest_of

USEFUL: Final = 0.16
"""Spread from which on harder is better than more of it: success between a fifth and four fifths."""
KNOWN_SEGMENTS: Final = 4
"""What a level's success was so many segments ago is known; later it may have changed, and the level is tried again."""
SPREAD_DIGITS: Final = 6
GENERATED: Final = "reasoning_gym"

Levels = Mapping[str, Sequence[Mapping[str, Any]]]
"""By target: what each level's config says otherwise than the target's own, from easy to hard."""


def check_levels(levels: Levels) -> None:
    """ValueError for a target without levels, and for a level that says nothing."""
    for task, listed in levels.items():
        if not listed:
            raise ValueError(f"levels.{task} is empty: list configs from easy to hard, or leave it out")
        for number, level in enumerate(listed, start=1):
            if not level:
                raise ValueError(f"levels.{task}: level {number} says nothing: the task's own config is the last level")


def unfit(levels: Levels, tasks: Iterable[TaskSpec]) -> str | None:
    """What is wrong with the levels for these tasks, in words, None where nothing is."""
    known = {task.name: task for task in tasks}
    for name, listed in levels.items():
        task = known.get(name)
        if task is None or task.role != "target":
            return f"levels.{name}: there is no target of that name"
        if task.source["kind"] != GENERATED:
            return f"levels.{name}: a task of the kind {task.source['kind']} has no levels, only {GENERATED} has"
        configs = configs_of(task.to_json(), listed)
        try:
            for config in configs:
                at_level(task, config)
        except TaskError as error:
            return f"levels.{name}: {error}"
        for number, (easier, harder) in enumerate(pairwise(configs), start=1):
            if easier == harder:
                following = f"level {number + 1}" if number < len(listed) else "the task's own config"
                return f"levels.{name}: level {number} is the same as {following}"
    return None


def configs_of(task: JsonObject, levels: Sequence[Mapping[str, Any]]) -> list[JsonObject]:
    """The configs of a target's levels, its own last."""
    own = dict(task["source"].get("config") or {})
    return [*({**own, **level} for level in levels), own]


def at_level(task: TaskSpec, config: Mapping[str, Any]) -> TaskSpec:
    """The task with another config of its generator. Raises TaskError."""
    return replace(task, source={**task.source, "config": dict(config)})


def chosen(levels: Levels, targets: Iterable[JsonObject], state: JsonObject) -> JsonObject:
    """{target: {"level", "of", "config"}} for each target with levels: what the next segment asks. The last level has
    no "config": it is the target as it is.
    """
    success, segments = state.get("levels", {}).get("success", {}), state["segments"]
    found: JsonObject = {}
    for task in targets:
        if task["name"] not in levels:
            continue
        configs = configs_of(task, levels[task["name"]])
        seen = success.get(task["name"], {})
        place = _place([seen.get(digest_of(config)) for config in configs], segments)
        found[task["name"]] = {"level": place + 1, "of": len(configs)} | (
            {"config": configs[place]} if place + 1 < len(configs) else {}
        )
    return found


def _place(seen: Sequence[Sequence[float] | None], segments: int) -> int:
    """Which level to ask, by (success, after which segment) of each that was asked before: the hardest that is useful,
    else the one with most spread. One step beyond what is known is the hardest that is tried.
    """
    known = [each[0] if each and segments - each[1] < KNOWN_SEGMENTS else None for each in seen]
    once = max((place for place, each in enumerate(seen) if each), default=0)
    hardest = max((place + 1 for place, success in enumerate(known) if success is not None), default=once)
    within = range(min(hardest, len(seen) - 1) + 1)
    spread = {place: _spread(_expected(known, place)) for place in within}
    useful = [place for place in within if spread[place] >= USEFUL]
    return max(useful) if useful else max(within, key=lambda place: (spread[place], known[place] is not None, place))


def _expected(known: Sequence[float | None], place: int) -> float:
    """The success of a level: as it was, else as near to one half as its neighbours let it be."""
    success = known[place]
    if success is not None:
        return success
    least = max((p for p in known[place + 1:] if p is not None), default=0.0)
    most = min((p for p in known[:place] if p is not None), default=1.0)
    return min(max(0.5, least), most)


def _spread(success: float) -> float:
    return round(success * (1.0 - success), SPREAD_DIGITS)


def asked(change: JsonObject) -> JsonObject:
    """{target: config} of what a segment asks otherwise than its target is."""
    return {task: level["config"] for task, level in change.get("levels", {}).items() if "config" in level}


def told(change: JsonObject, values: JsonObject) -> JsonObject:
    """{digest: {"task", "prompts", "success"}} of what a segment asked, with "level", "of" and "config" where the
    target has levels. The digest is of the task's name and the config of the level, or of the name alone.
    """
    found: JsonObject = {}
    for task, answered in values.get("asked", {}).items():
        level = change.get("levels", {}).get(task, {})
        what = {"task": task} | ({"config": level["config"]} if "config" in level else {})
        found[digest_of(what)] = {"task": task, **answered, **level}
    return found


def learned(
    state: JsonObject, change: JsonObject, answered: JsonObject | None, targets: Iterable[JsonObject], levels: Levels,
    segments: int,
) -> JsonObject:
    """The part of the state after a segment: "success" by target and digest of the level's config, and the levels that
    were "asked" last. `answered` is what the job says it asked, None where it is not to be believed.
    """
    before = state.get("levels", {})
    if answered is None:
        return dict(before)
    success: JsonObject = {}
    for task in targets:
        if task["name"] not in levels:
            continue
        configs = configs_of(task, levels[task["name"]])
        known = {
            digest: seen for digest, seen in before.get("success", {}).get(task["name"], {}).items()
            if digest in map(digest_of, configs)                             # the operator may have changed the list
        }
        place = change.get("levels", {}).get(task["name"], {}).get("level")
        if place is not None and task["name"] in answered:
            config = asked(change).get(task["name"], configs[-1])
            known[digest_of(config)] = [answered[task["name"]]["success"], segments]
        success[task["name"]] = known
    return {"success": success, "asked": change.get("levels", {})}


def moved(state: JsonObject, change: JsonObject) -> bool:
    """Whether a segment asks at other levels than the one before it, so that what both sampled does not compare."""
    return bool(state.get("levels", {}).get("asked", {}) != change.get("levels", {}))
