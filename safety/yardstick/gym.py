"""The one place that touches reasoning_gym: an entry of a generator by its number, and its strict score.

The library pays for junk: substrings, suffixes, and in some generators anything at all. Here an answer is right only
where the library gives its full mark *and* the library refuses the junk made from the same entry; otherwise nothing
but the reference itself is right. Some scorers evaluate the text they are given, so a text reaches them only when it
is short and harmless. Invariant: entry `n` of a generator is the same on every host and in every process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from tokenize import TokenError
from typing import Any, Final

from safety.yardstick.items import TaskError

DENIED: Final = frozenset({
    "boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour", "codeio", "coin_flip",
    "number_sequence", "game_of_life_halting", "composite",
})
"""Generators whose scorer or generator cannot be trusted."""
_BY_SEED: Final = frozenset({"acre", "gsm_symbolic", "list_functions", "word_ladder"})
"""Generators whose entries depend on the size of the data set too: each entry is the only one of a set of its own."""

_NUMBERS: Final = 2**31
_LONGEST: Final = 4_000
_ARITHMETIC: Final = re.compile(r"[0-9+\-*/(). ]{1,120}")
_FORMULA: Final = re.compile(r"[0-9A-Za-z+\-*/^(). ]{1,400}")
_LISTING: Final = re.compile(r"[0-9A-Za-z_'\", \n\[\]]{1,4000}")
_EVALUATED: Final = {
    "countdown": _ARITHMETIC, "puzzle24": _ARITHMETIC,
    "simple_integration": _FORMULA, "intermediate_integration": _FORMULA, "polynomial_multiplication": _FORMULA,
    "string_insertion": _LISTING, "spiral_matrix": _LISTING, "binary_matrix": _LISTING, "n_queens": _LISTING,
}
"""Generators whose scorer runs the answer as Python, with the texts that may be run: no call but of known functions."""
_FUNCTIONS: Final = frozenset({"sin", "cos", "tan", "exp", "log", "ln", "sqrt", "asin", "acos", "atan", "pi"})
_HEAVY: Final = re.compile(r"(\*\*|\^)\s*(\(|-?\s*\d{3,})|(\*\*|\^)\s*\w+\s*\)*\s*(\*\*|\^)|\d{12,}")
"""Towers of powers and huge exponents: harmless to read, endless to compute."""
_SCORER_ERRORS: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, SyntaxError, TypeError,
    ValueError, TokenError,
)

Entry = dict[str, Any]


def entry(generator: str, config: Mapping[str, Any] | None, number: int) -> Entry:
    """Entry `number` of a generator: a dict with question, answer and metadata. Raises TaskError."""
    if generator in _BY_SEED:
        found: Entry = _create(generator, dict(config or {}), number, 1)[0]
    else:
        found = _dataset(generator, json.dumps(dict(config or {}), sort_keys=True))[number]
    return found


def strict_score(generator: str, config: Mapping[str, Any] | None, number: int, text: str) -> int:
    """1 where `text` holds a right answer to entry `number` and nothing else, 0 otherwise, whatever the scorer does."""
    asked = entry(generator, config, number)
    reference = str(asked["answer"])
    answer = extracted(text)
    if answer == reference.strip():
        return 1
    if not _harmless(generator, answer, reference):
        return 0
    if any(_full_mark(generator, config, asked, junk) for junk in _junk(asked, reference)):
        return 0
    return int(_full_mark(generator, config, asked, answer))


def extracted(text: str) -> str:
    """What stands in the last <answer> element, or the whole text without outer white space."""
    inside = re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL)
    return str(inside[-1] if inside else text).strip()


def _junk(asked: Entry, reference: str) -> list[str]:
    padded = [f"{reference}{between}{more}" for between in (" ", ", ", "\n") for more in ("or so", reference)]
    return ["", " ", "0 or 1", "yes, no", str(asked["question"]), f"so, {reference}", *padded]


def _full_mark(generator: str, config: Mapping[str, Any] | None, asked: Entry, answer: str) -> bool:
    if not _harmless(generator, answer, str(asked["answer"])):
        return False
    dataset = _dataset(generator, json.dumps(dict(config or {}), sort_keys=True))
    try:
        return bool(float(dataset.score_answer(answer, asked)) >= 1.0)
    except _SCORER_ERRORS:                                   # a scorer that fails has not said yes
        return False


def _harmless(generator: str, answer: str, reference: str) -> bool:
    if len(answer) > min(_LONGEST, 4 * len(reference) + 64):
        return False
    safe = _EVALUATED.get(generator)
    if safe is None:
        return True
    if not safe.fullmatch(answer) or _HEAVY.search(answer):
        return False
    words = re.findall(r"[A-Za-z_]+", answer) if safe is _FORMULA else []
    return all(len(word) == 1 or word in _FUNCTIONS for word in words)


@lru_cache(maxsize=32)
def _dataset(generator: str, config: str) -> Any:
    return _create(generator, json.loads(config), 0, 1 if generator in _BY_SEED else _NUMBERS)


def _create(generator: str, config: dict[str, Any], seed: int, size: int) -> Any:
    if generator in DENIED:
        raise TaskError(f"reasoning_gym generator {generator!r} is not allowed: it cannot be scored strictly")
    from reasoning_gym.factory import DATASETS, create_dataset  # two seconds of imports, only where needed

    if generator not in DATASETS:
        raise TaskError(f"reasoning_gym has no generator {generator!r}")
    if {"seed", "size"} & set(config):
        raise TaskError(f"reasoning_gym generator {generator!r}: seed and size are not settings, splits decide them")
    try:
        return create_dataset(generator, seed=seed, size=size, **config)
    except (AssertionError, TypeError, ValueError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise TaskError(f"reasoning_gym generator {generator!r} refuses its config: {line}") from error
