"""Rows, changes and differences in words for a terminal. Pure; standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from state.records import JsonObject, Row

COLOURS = {"PROMOTED": "32", "REJECTED": "2", "REFUSED": "33", "CRASHED": "31", "TIMED_OUT": "31", "ROLLED_BACK": "35"}
LONGEST_VALUE = 100


def model_name(digest: str | None) -> str:
    return digest[:12] if digest else "-"


def row_in_words(row: Row, colour: bool = False) -> str:
    """One line: id, time, loop or event, verdict, change, reason."""
    verdict = row.verdict or row.event
    shown = f"{verdict:<11}"
    if colour and verdict in COLOURS:
        shown = f"\033[{COLOURS[verdict]}m{shown}\033[0m"
    depth = "  " if row.parent is not None else ""
    what = change_in_words(row.change) if row.loop else ""
    return f"{row.id:>6}  {row.time[:19].replace('T', ' ')}  {depth}{row.loop or row.event:<13} {shown} " + (
        f"{what}: {row.reason}" if what else row.reason
    )


def change_in_words(change: JsonObject) -> str:
    """What a change is, in a few words. One that is no object any more was tampered with: `verify` says so."""
    if not isinstance(change, dict):
        return "unreadable"
    if "shaping" in change:
        shaping = change["shaping"] or {}
        weights = {name: value for name, value in (shaping.get("weights") or {}).items() if value}
        paid = ", ".join(f"{name} {value:.2f}" for name, value in weights.items())
        return (f"segment, shaping by {paid}" if paid else "segment, zero shaping") + _levels_in_words(change)
    if "recipe" in change:
        recipe = change["recipe"]
        parts = [recipe.get("stage", "?"), f"lr {recipe.get('learning_rate', 0):.2g}"]
        if (adapter := (recipe.get("adapter") or {}).get("kind", "none")) != "none":
            parts.append(adapter)
        born = f", child of {change['parent']}" if change.get("parent") else ""
        return f"{' '.join(parts)}, steps {change.get('from_step', 0)}-{change.get('to_step', '?')}{born}"
    kind = change.get("kind")
    if kind == "merge":
        return f"{change.get('operator')} of {len(change.get('parents', []))}"
    if kind == "path":
        layers, models = len(change.get("layers", [])), len(change.get("parents", []))
        return f"path of {layers} layers through {models} model{'s' if models != 1 else ''}"
    if kind == "keep":
        return "train the incumbent"
    return str(kind) if kind else ""


def _levels_in_words(change: JsonObject) -> str:
    levels = change.get("levels")
    return "".join(
        f", {task} at level {level.get('level')} of {level.get('of')}"
        for task, level in levels.items() if isinstance(level, dict)
    ) if isinstance(levels, dict) else ""


def story(row: Row, rows: Sequence[Row], inside: Sequence[JsonObject]) -> str:
    """Everything about one row, for reading from top to bottom."""
    lines = [f"row {row.id}  {row.event}  {row.time}  by {row.actor}"]
    for each in rows:
        lines.append(f"\n{each.event} (row {each.id}): {each.verdict or ''} {each.reason}".rstrip())
        lines += [f"  from {each.base}"] if each.base else []
        lines += [f"  to   {each.result}"] if each.result else []
        if each.event != "closed" or len(rows) == 1:
            lines += [f"  change.{key} = {_short(value)}" for key, value in flat(each.change, by_entry=True)]
        lines += [f"  {key} = {_short(value)}" for key, value in flat(each.evidence)]
        lines += [cost_in_words(each.cost)] if isinstance(each.cost, dict) and each.cost else []
        lines.append(f"  hash {each.hash}")
    if inside:
        lines.append("\ncycles inside")
        lines += [f"  {child['id']:>6}  {child.get('loop', ''):<9} {child.get('verdict') or 'open':<10} "
                  f"{change_in_words(child.get('change', {}))}: {child.get('reason', '')}" for child in inside]
    return "\n".join(lines) + "\n"


def cost_in_words(cost: JsonObject) -> str:
    """What it cost, energy where it is known."""
    energy = f", {cost['joules'] / 1000:.3g} kJ" if cost.get("joules") is not None else ""
    counts = f"{cost.get('items', 0)} items, {cost.get('tokens', 0)} tokens"
    return f"  cost: {cost.get('seconds', 0):.1f} s, {counts}{energy}"


def flat(value: Any, prefix: str = "", by_entry: bool = False) -> Iterator[tuple[str, str]]:
    """A JSON tree as (dotted key, text); with `by_entry`, tables of numbers and long lists of names entry by entry."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}.{key}" if prefix else str(key), by_entry)
    elif by_entry and isinstance(value, list) and value and _goes_by_entry(value):
        for place, inner in enumerate(value):
            yield from flat(inner, f"{prefix}[{place}]", by_entry)
    elif prefix:
        yield prefix, _text(value)


def _goes_by_entry(values: list[Any]) -> bool:
    names = all(isinstance(value, str) for value in values)
    return all(isinstance(value, list) for value in values) or (names and len(_text(values)) > LONGEST_VALUE)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def differences(a: JsonObject, b: JsonObject) -> list[tuple[str, str, str]]:
    """The dotted keys on which two trees differ, with both values in full."""
    left, right = dict(flat(a)), dict(flat(b))
    return [
        (key, left.get(key, "(absent)"), right.get(key, "(absent)"))
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]
