"""Which training data a model saw, and how much: told from the rows of its lineage. Pure; standard library only.

A model saw what it and every model that it was made from were trained on, each run counted once. A run is a rung, one
of reinforcement with the rows that its segments learned again and the prompts they asked. Rungs that left no model in
the ledger are counted with the one that did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from daemon.provenance import Descent
from state.records import JsonObject


def data_seen(lineage: Sequence[Descent], given: dict[str, str]) -> JsonObject:
    """{"sources": [{"source", "digest", "given", "rows", "tokens", "selected"}], "tasks", "prompts",
    "levels": [{"task", "digest", "config", "prompts"}], "runs", "unrecorded"}.

    "digest" names the rows that were trained on, "given" the operator's source that they are from, "selected" what a
    selection kept and dropped of it (None without one). "levels" are those prompts among all that were asked otherwise
    than their task is, "digest" naming task and config. "runs" and "unrecorded" are ids of rows, the latter of training
    that an earlier version of the program recorded without amounts.
    """
    sources: dict[tuple[str, str], JsonObject] = {}
    levels: dict[str, JsonObject] = {}
    tasks, prompts = set[str](), 0
    runs, unrecorded = list[int](), list[int]()
    for descent in lineage:
        row = descent.row
        if row is None or "recipe" not in descent.recipe:
            continue
        evidence = row.evidence if isinstance(row.evidence, dict) else {}
        (runs if "data" in evidence else unrecorded).append(row.id)
        for name, used in _entries(evidence.get("data"), descent.earlier):
            known = sources.setdefault((name, used["digest"]), {
                "source": name, "digest": used["digest"], "given": given.get(name), "rows": 0, "tokens": 0,
                "selected": used.get("selected"),
            })
            known["rows"] += used["rows"]
            known["tokens"] += used["tokens"]
        if evidence.get("prompts"):
            tasks.update(evidence.get("tasks", ()))
            prompts += evidence["prompts"]
        for _, what in _asked(descent.asked):
            tasks.add(what["task"])
            prompts += what["prompts"]
        for digest, what in (*_asked(evidence.get("asked")), *_asked(descent.asked)):
            if "config" in what:
                level = levels.setdefault(digest, {
                    "task": what["task"], "digest": digest, "config": what["config"], "prompts": 0,
                })
                level["prompts"] += what["prompts"]
    return {
        "sources": [entry for _, entry in sorted(sources.items())], "tasks": sorted(tasks), "prompts": prompts,
        "levels": sorted(levels.values(), key=lambda level: (level["task"], level["digest"])),
        "runs": sorted(runs), "unrecorded": sorted(unrecorded),
    }


def data_in_words(seen: JsonObject) -> list[str]:
    """The same for people, a line a source; empty for a model that was never trained here."""
    lines = [
        f"{entry['source']} ({entry['digest'][:12]}): {entry['rows']:,} rows, {entry['tokens']:,} tokens"
        f"{_selection(entry['selected'])}" for entry in seen["sources"]
    ]
    if seen["prompts"]:
        lines.append(f"reinforced on {', '.join(seen['tasks'])}: {seen['prompts']:,} prompts")
    lines += [
        f"of them {level['prompts']:,} of {level['task']} at another level ({level['digest'][:12]}): {_settings(level)}"
        for level in seen["levels"]
    ]
    if seen["unrecorded"]:
        rows = ", ".join(map(str, seen["unrecorded"]))
        lines.append(f"an earlier version did not record how much in row{'s' * (len(seen['unrecorded']) > 1)} {rows}")
    return lines


def _selection(selected: JsonObject | None) -> str:
    if not selected:
        return ""
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in sorted(selected["dropped"].items()))
    return f"; selected {selected['kept']:,} of {selected['rows']:,}" + (f" (dropped: {dropped})" if dropped else "")


def _settings(level: JsonObject) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(level["config"].items()))


def _asked(told: object) -> Iterator[tuple[str, JsonObject]]:
    """What was asked, by digest. What was tampered with is nothing: `verify` says so."""
    for digest, what in told.items() if isinstance(told, dict) else ():
        whole = isinstance(what, dict) and isinstance(what.get("task"), str) and isinstance(what.get("prompts"), int)
        if whole and isinstance(what.get("config", {}), dict):
            yield digest, what


def _entries(*told: object) -> Iterator[tuple[str, JsonObject]]:
    """Sources that were trained on. What was tampered with has none: `verify` says so."""
    for data in told:
        for name, used in data.items() if isinstance(data, dict) else ():
            if isinstance(used, dict) and isinstance(used.get("digest"), str) and used.get("tokens"):
                yield name, used
