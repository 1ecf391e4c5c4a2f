"""What a configuration was trained on and asked: rows and tokens of sources, what selections left, prompts. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from state.records import JsonObject


def told(trained: JsonObject, sources: Mapping[str, str | None], selected: JsonObject) -> JsonObject:
    """{source: {"digest", "rows", "tokens"}} of what was trained on here, and "selected" of every source: what the
    selection kept and dropped.
    """
    used = {name: report for name, report in trained.items() if report["tokens"]}
    return {
        name: {
            "digest": sources.get(name), **{key: used.get(name, {}).get(key, 0) for key in ("rows", "tokens")},
            **({"selected": selected[name]} if name in selected else {}),
        }
        for name in sorted({*used, *selected})
    }


def added(seen: JsonObject, data: JsonObject) -> JsonObject:
    """What was seen before and now. A recipe selects once, so a source has the same digest in all its rungs."""
    more = {
        name: {**used, **{key: used[key] + seen.get(name, {}).get(key, 0) for key in ("rows", "tokens")}}
        for name, used in data.items()
    }
    return {**seen, **more}


def asked_too(before: JsonObject, asked: JsonObject) -> JsonObject:
    """{digest: {"task", "prompts"}} of what was asked before and now, with "config" where it was not the task's own."""
    more = {
        digest: {key: what[key] for key in ("task", "config") if key in what}
        | {"prompts": what["prompts"] + before.get(digest, {}).get("prompts", 0)}
        for digest, what in asked.items()
    }
    return {**before, **more}
