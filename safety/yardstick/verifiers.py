"""Strict verifiers: text in, right (1) or wrong (0) out; and the junk that none of them may pay for.

Partial credit does not exist here. Invariant: a verifier never raises, whatever text it is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Final

from safety.yardstick import gym
from safety.yardstick.items import Item, TaskError, TaskSpec

Verifier = Callable[[Item, str], int]

_NUMBER: Final = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d{1,40})(\.\d{1,40})?(e[+-]?\d{1,3})?", re.IGNORECASE | re.ASCII)
_FRACTION: Final = re.compile(r"([+-]?\d{1,40})\s*/\s*(\d{1,40})", re.ASCII)
_MOST_OPTIONS: Final = 20
FIRST_ITEMS: Final = 8
"""Junk is tried on so many items of a task before it is used."""


def make_verifier(task: TaskSpec) -> Verifier:
    """The verifier of a task, which alone says what is right."""
    return _named(task, task.verifier)


def second_verifier(task: TaskSpec) -> Verifier | None:
    """The one that is asked beside it, where the task names one."""
    return None if task.second_verifier is None else _named(task, task.second_verifier)


def _named(task: TaskSpec, name: str) -> Verifier:
    if name == "exact":
        return exact
    if name == "numeric":
        return numeric
    generator, config = task.source["generator"], task.source.get("config")

    def reasoning_gym(item: Item, text: str) -> int:
        if item.origin is None:
            raise TaskError(f"task {task.name}: item {item.id} was not drawn from {generator}")
        return gym.strict_score(generator, config, item.origin, text)

    return reasoning_gym


def exact(item: Item, text: str) -> int:
    """The reference, up to the amount of white space."""
    return int(text.split() == item.answer.split())


def numeric(item: Item, text: str) -> int:
    """One number and nothing else, equal in value to the reference: 1,000 and 1e3, 0.5 and 1/2."""
    value = number(text)
    return int(value is not None and value == number(item.answer))


def number(text: str) -> Fraction | None:
    """The value of a text that is one number, else None."""
    text = text.strip()
    fraction = _FRACTION.fullmatch(text)
    if fraction and int(fraction[2]):
        return Fraction(int(fraction[1]), int(fraction[2]))
    return Fraction(text.replace(",", "")) if _NUMBER.fullmatch(text) else None


def junk_paid(task: TaskSpec, items: Sequence[Item]) -> str | None:
    """Why a task's verifier must not be used: what it said to junk and references of its first items. None if sound."""
    for name in (task.verifier, *([task.second_verifier] if task.second_verifier else [])):
        if problems := canaries(_named(task, name), items[:FIRST_ITEMS]):
            return f"task {task.name}: the verifier {name} cannot be trusted: {problems[0]}"
    return None


def canaries(verifier: Verifier, items: Sequence[Item]) -> list[str]:
    """What is wrong with a verifier on these items: junk that it pays for, references that it refuses; empty if sound.

    Junk: nothing, the prompt echoed, every option, this answer or another one, the answer with something after it.
    """
    options = list(dict.fromkeys(item.answer for item in items))[:_MOST_OPTIONS]
    problems = []
    for item in items:
        if verifier(item, item.answer) != 1:
            problems.append(f"item {item.id}: the reference is not right")
        problems += [
            f"item {item.id}: {kind} counts as right"
            for kind, text in _junk(item, options)
            if text.split() != item.answer.split() and verifier(item, text) > 0
        ]
    return problems


def _junk(item: Item, options: Sequence[str]) -> list[tuple[str, str]]:
    other = next((option for option in options if option != item.answer), "another")
    every = list(dict.fromkeys([*options, item.answer, other]))
    return [
        ("an empty answer", ""),
        ("white space", " \n"),
        ("the prompt echoed", item.prompt),
        ("the prompt and the answer", f"{item.prompt} {item.answer}"),
        ("every option", " ".join(every)),
        ("every option in a list", ", ".join(every)),
        ("this answer or another", f"{item.answer} or {other}"),
        ("another answer or this", f"{other} or {item.answer}"),
        ("the answer and a suffix", f"{item.answer} or something like it"),
        ("the answer twice", f"{item.answer} {item.answer}"),
    ]
