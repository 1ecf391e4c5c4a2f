"""What a reward feature may see, and the features that kaizend has of its own.

A feature maps one completion to phi in [0, 1], 1 being the better end. Its class says where it may pay: on every
completion ("one"), only on right ones ("r0"), or only on wrong ones ("1-r0"). What a feature is worth is learned in
`loops.reward.shaping`, never here. Standard library only: job functions import this file too.

Invariant: a phi lies in [0, 1] whatever text it is given, and a feature that needs a reference, or a model in a worker,
answers 1/2 (it pays nothing) where there is none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from operator import eq
from statistics import median
from types import MappingProxyType
from typing import Final

NEUTRAL: Final = 0.5
LEARNED: Final = "learned"
"""The feature that a reward model measures; the texts alone tell nothing of it."""
ENTROPY_BAND: Final = "entropy_band"
"""The feature that the model itself measures, by how sure it is of an answer."""
LEAST_NATS: Final = 0.05
MOST_NATS: Final = 1.0
"""Below, a model repeats what it has settled on; above, it guesses among several tokens at each place."""
MOST_COMPARED_UNITS: Final = 256
"""Edit similarity is quadratic: it looks at the first so many units of either text."""

Phi = Callable[[str, str, str | None, Sequence[str]], float]
"""(prompt, completion, reference or None, completions of the same group, this one included) -> phi in [0, 1]."""


class FeatureClass(StrEnum):
    """Which completions a feature may pay on, given their strict reward r0."""

    ONE = "one"
    RIGHT = "r0"
    WRONG = "1-r0"

    def factor(self, r0: float) -> float:
        """c_k of the completion."""
        if self is FeatureClass.ONE:
            return 1.0
        return r0 if self is FeatureClass.RIGHT else 1.0 - r0


@dataclass(frozen=True, slots=True)
class Feature:
    name: str
    klass: FeatureClass
    phi: Phi


@lru_cache(maxsize=1024)
def _words(text: str) -> tuple[str, ...]:
    """Kept for a while: every feature asks for the words of the same few texts."""
    return tuple(text.split())


def _units(text: str, like: str) -> tuple[str, ...]:
    """Words, or characters where `like` (the reference) is a single word."""
    words = _words(text)
    return words if len(_words(like)) > 1 else tuple("".join(words))


@lru_cache(maxsize=1024)
def _bag(units: tuple[str, ...]) -> dict[str, int]:
    """How often each unit is there."""
    return dict(Counter(units))


def _places(prompt: str, completion: str, reference: str | None, siblings: Sequence[str]) -> float:
    """Share of places that hold the reference's unit; a wrong length costs its difference."""
    if reference is None:
        return NEUTRAL
    mine, theirs = _units(completion, reference), _units(reference, reference)
    hits: int = sum(map(eq, mine, theirs))
    return hits / max(len(mine), len(theirs), 1)


def _overlap(prompt: str, completion: str, reference: str | None, siblings: Sequence[str]) -> float:
    """F1 of the two bags of units, order ignored."""
    if reference is None:
        return NEUTRAL
    mine, theirs = _units(completion, reference), _units(reference, reference)
    total, known = len(mine) + len(theirs), _bag(theirs)
    common = sum(min(count, known.get(unit, 0)) for unit, count in _bag(mine).items())
    return 2.0 * common / total if total else 1.0


def _prefix(prompt: str, completion: str, reference: str | None, siblings: Sequence[str]) -> float:
    """How much of the reference the completion gets right before its first error."""
    if reference is None:
        return NEUTRAL
    mine, theirs = _units(completion, reference), _units(reference, reference)
    return _alike(mine, theirs) / max(len(theirs), 1)


def _closeness(prompt: str, completion: str, reference: str | None, siblings: Sequence[str]) -> float:
    """1 - edit distance / longer length."""
    if reference is None:
        return NEUTRAL
    mine = _units(completion, reference)[:MOST_COMPARED_UNITS]
    theirs = _units(reference, reference)[:MOST_COMPARED_UNITS]
    longest = max(len(mine), len(theirs))
    begin = _alike(mine, theirs)                        # what both begin with costs nothing
    return 1.0 - _edit_distance(mine[begin:], theirs[begin:]) / longest if longest else 1.0


def _alike(a: Sequence[str], b: Sequence[str]) -> int:
    """How many units both begin with."""
    for place, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return place
    return min(len(a), len(b))


def _edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein's."""
    if not a or not b:
        return len(a) + len(b)
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def _brevity(prompt: str, completion: str, reference: str | None, siblings: Sequence[str]) -> float:
    """Shorter than its group is better: 1/2 at the group's mean length."""
    own = len(_words(completion))
    mean = sum(map(len, map(_words, siblings))) / len(siblings) if siblings else float(own)
    return mean / (mean + own) if mean + own else NEUTRAL


def _length_band(prompt: str, completion: str, reference: str | None, siblings: Sequence[str]) -> float:
    """1 from half to twice the reference's length, or the group's median where there is none; less by how many times it
    is shorter or longer than that.
    """
    if reference is not None:
        own, middle = len(_units(completion, reference)), float(len(_units(reference, reference)))
    else:
        own = len(_words(completion))
        middle = median(map(len, map(_words, siblings))) if siblings else float(own)
    return min(1.0, 2.0 * min(own, middle) / max(own, middle)) if own and middle else float(own == middle)


def _format(prompt: str, completion: str, reference: str | None, siblings: Sequence[str]) -> float:
    """F1 of the two bags of words by their form alone: which are numbers, which letters, which signs stand where."""
    if reference is None:
        return NEUTRAL
    mine, theirs = Counter(map(_form, _words(completion))), Counter(map(_form, _words(reference)))
    total = mine.total() + theirs.total()
    return 2.0 * (mine & theirs).total() / total if total else 1.0


@lru_cache(maxsize=4096)
def _form(word: str) -> str:
    """A word with each run of digits as 0 and each run of letters as a."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", word))


def in_entropy_band(nats: float) -> float:
    """phi of a mean entropy in nats a token: 1 within the band, and less the further it is below or above."""
    return max(0.0, min(1.0, nats / LEAST_NATS, MOST_NATS / max(nats, MOST_NATS)))


def _varied(prompt: str, completion: str, reference: str | None, siblings: Sequence[str]) -> float:
    """Share of word pairs that are not a repetition of an earlier pair."""
    words = _words(completion)
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else NEUTRAL


def _grounded(prompt: str, completion: str, reference: str | None, siblings: Sequence[str]) -> float:
    """Share of the completion's words that the prompt holds."""
    words, known = _words(completion), _bag(_words(prompt))
    return sum(word in known for word in words) / len(words) if words else 0.0


def _agreement(prompt: str, completion: str, reference: str | None, siblings: Sequence[str]) -> float:
    """Share of the group that gave the same text: a majority vote, and a known way to be hacked."""
    own = _words(completion)
    return [*map(_words, siblings)].count(own) / len(siblings) if siblings else NEUTRAL


def _unmeasured(prompt: str, completion: str, reference: str | None, siblings: Sequence[str]) -> float:
    """A worker puts another value in its place: sigmoid(r - r_ref) where it was given a reward model (PAR, 2502.18770),
    `in_entropy_band` of the model that answered.
    """
    return NEUTRAL


BY_REWARD_MODEL: Final = Feature(LEARNED, FeatureClass.WRONG, _unmeasured)
"""It orders wrong answers, of which the verifier says nothing; to right ones it has nothing to add but its errors."""
FEATURES: Final[Mapping[str, Feature]] = MappingProxyType({
    feature.name: feature
    for feature in (
        Feature("places", FeatureClass.WRONG, _places),
        Feature("overlap", FeatureClass.WRONG, _overlap),
        Feature("prefix", FeatureClass.WRONG, _prefix),
        Feature("closeness", FeatureClass.WRONG, _closeness),
        Feature("grounded", FeatureClass.WRONG, _grounded),
        Feature("brevity", FeatureClass.RIGHT, _brevity),
        Feature("varied", FeatureClass.ONE, _varied),
        Feature("agreement", FeatureClass.ONE, _agreement),
        Feature("format", FeatureClass.WRONG, _format),
        Feature("length_band", FeatureClass.RIGHT, _length_band),
        Feature(ENTROPY_BAND, FeatureClass.ONE, _unmeasured),
    )
})
"""kaizend's own that need no other model, by name. At most eight enter a shaping (ALGORITHMS 7)."""
USUAL: Final = ("places", "overlap", "prefix", "closeness", "grounded", "brevity", "varied")
"""Those that a shaping may pay for unless the operator says otherwise."""
