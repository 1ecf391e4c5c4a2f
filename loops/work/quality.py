"""How good a row looks, from 0 to 1, by a fixed heuristic: no model is asked. Pure.

The product of four parts, each about the answer, after the rules by which large corpora are filtered (Rae et al. 2021,
2112.11446, A1):

    plain      the part of its characters that are letters, digits, white space or usual punctuation
    varied     the part of its runs of three words that are different ones
    sensible   1 where its words have 1 to 10 characters on average, less by the factor of how much longer they are
    answering  0 where it is empty or only repeats what is asked, else 1

It says nothing about whether an answer is right: that is what verifiers are for.
"""

from __future__ import annotations

from typing import Final

from safety.yardstick.items import normalised
from safety.yardstick.training import Row, texts_of

USUAL: Final = frozenset(".,;:!?'\"()[]{}<>+-*/=%&#@_$^|\\`~")
WORDS: Final = 3
LONGEST_MEAN: Final = 10.0


def quality(row: Row) -> float:
    """The score of one row."""
    *asked, answer = texts_of(row)
    words = normalised(answer).split()
    if not words or normalised(answer) in (normalised(text) for text in asked):
        return 0.0
    plain = sum(char.isalnum() or char.isspace() or char in USUAL for char in answer) / len(answer)
    runs = [tuple(words[begin:begin + WORDS]) for begin in range(max(1, len(words) - WORDS + 1))]
    mean = sum(map(len, words)) / len(words)
    return plain * (len(set(runs)) / len(runs)) * min(1.0, LONGEST_MEAN / mean)
