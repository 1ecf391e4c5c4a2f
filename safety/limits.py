"""What a limit is: a field with a range, a direction in which it loosens, what it does and one line of explanation.

One declaration per limit gives its check, its default text in bounds.toml, its place in `kaizend bounds show` and the
answer to "is this looser?". Standard library only. Not here: which limits there are (`safety.bounds`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any

from state.errors import UserError
from state.records import JsonObject, Outcome, Verdict


class BoundsError(UserError):
    """The bounds cannot be used; the text is one line naming the file, the section and the key."""


class Looser(StrEnum):
    """In which direction a limit loosens."""

    UP = "up"            # a larger number allows more
    DOWN = "down"        # a smaller number allows more
    MORE = "more"        # a list with more members allows more
    LATER = "later"      # a choice that stands later among `choices` allows more
    NAMED = "named"      # a list with more members allows more, and an empty one allows anything
    FEWER = "fewer"      # a list with fewer members allows more
    LONE = "lone"        # any change is taken for a loosening


LOOSER_IN_WORDS = {
    Looser.UP: "higher", Looser.DOWN: "lower", Looser.MORE: "more members", Looser.FEWER: "fewer members",
    Looser.NAMED: "more members, or none", Looser.LATER: "a later one", Looser.LONE: "any other",
}


@dataclass(frozen=True, slots=True)
class Limit:
    """What is known of one key besides its value. `low` and `high` are what the key itself may be set to."""

    text: str
    action: str
    looser: Looser
    low: float = -math.inf
    high: float = math.inf
    above_low: bool = False      # `low` itself is not allowed
    unit: str = ""
    choices: tuple[Any, ...] = ()   # what a value, or each member of a list, may be; empty: anything


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer that a bound gives: its name, what was asked for and what it allows."""

    bound: str
    value: Any
    limit: Any

    def __str__(self) -> str:
        return f"{self.bound}: {_short(self.value)} is outside {_short(self.limit)}"

    def outcome(self) -> Outcome:
        """The refusal as a cycle's outcome."""
        return Outcome(Verdict.REFUSED, str(self), evidence=self.to_json(), lesson={"refused_by": self.bound})

    def to_json(self) -> JsonObject:
        return {"bound": self.bound, "value": self.value, "limit": self.limit}


def limit(default: Any, text: str, action: str, looser: Looser = Looser.UP, **range_: Any) -> Any:
    """A dataclass field that is a limit."""
    about = {"limit": Limit(text, action, looser, **range_)}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=about)
    return field(default=default, metadata=about)


def limits_of(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any, Limit]]:
    """Every (dotted name, value, limit) of a tree of sections, in the order of declaration."""
    for item in fields(tree):
        value, name = getattr(tree, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            yield from limits_of(value, f"{name}.")
        elif "limit" in item.metadata:
            yield name, value, item.metadata["limit"]


def read_section(section: Any, body: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """A section like `section` (its defaults) with the values of `body`. Raises BoundsError.

    `where` names the file in errors and `prefix` the section, "" for the whole tree.
    """
    known = {item.name: item for item in fields(section)}
    for name in body:
        if name not in known:
            raise BoundsError(_unknown(where, prefix, name, list(known)))
    values = {}
    for name, item in known.items():
        default = getattr(section, name)
        if name not in body:
            values[name] = default
        elif is_dataclass(default):
            if not isinstance(body[name], dict):
                raise BoundsError(f"{where}: [{prefix}{name}] must be a section, got {body[name]!r}")
            values[name] = read_section(default, body[name], where, f"{prefix}{name}.")
        else:
            values[name] = _checked(body[name], default, item.metadata["limit"], f"{where}: {_key(prefix, name)}")
    return type(section)(**values)


def loosenings(old: Any, new: Any, back: bool = False) -> list[str]:
    """One line for every limit of `new` that allows more than in `old`; with `back`, for every one that allows less."""
    before = {name: value for name, value, _ in limits_of(old)}
    return [
        f"{name}: {_short(before[name])} -> {_short(value)}"
        for name, value, about in limits_of(new)
        if _is_looser(*((value, before[name]) if back else (before[name], value)), about)
    ]


def table_of(tree: Any) -> str:
    """The limits as a Markdown table: name, what it limits, its default, the way in which it loosens, what it does."""
    lines = ["| bound | limits | default | looser | does |", "|---|---|---|---|---|"]
    for name, value, about in limits_of(tree):
        unit = f" {about.unit}" if about.unit else ""
        shown = ", ".join(value) if isinstance(value, tuple) else _toml_value(value)
        fixed = "fixed" if about.choices and len(about.choices) == 1 else LOOSER_IN_WORDS[about.looser]
        lines.append(f"| `{name}` | {about.text} | {shown or 'none'}{unit} | {fixed} | {about.action} |")
    return "\n".join(lines) + "\n"


def headroom_of(value: Any, now: Any, looser: Looser) -> Any:
    """What is left of a limit where `now` is used: a number, the members of a list that are not used; None if unknown.

    Below 0 the limit is exceeded.
    """
    if isinstance(value, bool | str | dict) or now is None:
        return None
    if looser is Looser.MORE and isinstance(now, list | tuple):
        return [member for member in value if member not in now]
    if looser is Looser.UP or looser is Looser.DOWN:
        return (value - now) if looser is Looser.UP else (now - value)
    return None


def toml_of(tree: Any) -> str:
    """The tree as a commented TOML text that reads back as the same tree."""
    sections: dict[str, list[str]] = {}
    for name, value, about in limits_of(tree):
        section, _, key = name.rpartition(".")
        unit = f" [{about.unit}]" if about.unit else ""
        sections.setdefault(section, []).append(f"# {about.text}{unit}\n{key} = {_toml_value(value)}")
    return "\n\n".join(f"[{name}]\n" + "\n".join(lines) for name, lines in sections.items()) + "\n"


def _unknown(where: str, prefix: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    place = f"in section [{prefix.rstrip('.')}]" if prefix else "at the top (sections go in [brackets])"
    return f"{where}: unknown key {name!r} {place}{hint}"


def _key(prefix: str, name: str) -> str:
    return f"key {name!r} in section [{prefix.rstrip('.')}]"


def _checked(value: Any, default: Any, about: Limit, where: str) -> Any:
    """The value in the type of the default and within the key's own range and choices."""
    if about.choices and any(entry not in about.choices for entry in (value if isinstance(value, list) else [value])):
        raise BoundsError(f"{where} can only hold {', '.join(map(_toml_value, about.choices))}, got {value!r}")
    if isinstance(default, dict):
        if not isinstance(value, dict):
            raise BoundsError(f"{where} must be a table of name = number, got {value!r}")
        return {name: _number(entry, 0.0, about, f"{where}, entry {name!r},") for name, entry in value.items()}
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise BoundsError(f"{where} must be true or false, got {value!r}")
        return value
    if isinstance(default, str):
        if not isinstance(value, str):
            raise BoundsError(f"{where} must be a text, got {value!r}")
        return value
    if isinstance(default, tuple):
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise BoundsError(f"{where} must be a list of texts, got {value!r}")
        return tuple(value)
    return _number(value, default, about, where)


def _number(value: Any, default: float, about: Limit, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -math.inf < value < math.inf:
        raise BoundsError(f"{where} must be a number, got {value!r}")
    if isinstance(default, int) and not isinstance(value, int):
        raise BoundsError(f"{where} must be a whole number, got {value!r}")
    if not about.low <= value <= about.high or (about.above_low and value == about.low):
        least = "above" if about.above_low else "at least"
        raise BoundsError(f"{where} must be {least} {about.low:g} and at most {about.high:g}, got {value!r}")
    return value if isinstance(default, int) else float(value)


def _is_looser(old: Any, new: Any, about: Limit) -> bool:
    looser = about.looser
    if isinstance(old, dict):
        return old.keys() != new.keys() or any(_is_looser(old[name], new[name], about) for name in new)
    if looser is Looser.LATER and old in about.choices and new in about.choices:
        return about.choices.index(new) > about.choices.index(old)
    if looser is Looser.UP:
        return bool(new > old)
    if looser is Looser.DOWN:
        return bool(new < old)
    if looser is Looser.MORE:
        return bool(set(new) - set(old))
    if looser is Looser.FEWER:
        return bool(set(old) - set(new))
    if looser is Looser.NAMED:
        return bool(old) and (not new or bool(set(new) - set(old)))
    return bool(new != old)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(entry) for entry in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_value(name)} = {entry}" for name, entry in value.items()) + "}"
    return str(value)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_short(entry) for entry in value) + "]"
    return str(value)
