"""Duplicates among rows: the same text after normalising, and nearly the same by MinHash.

A text is the set of its runs of three words, each as a number. Two are near where their sets share at least `NEAR` of
all that is in either (Jaccard). Candidates are found by MinHash signatures cut into bands (Broder 1997; Indyk and
Motwani 1998) and then compared in full, so nothing is dropped that is not near; of pairs that share .8 one in some
thousands is missed, of those that share more hardly any. Pure; the same rows give the same answer on every host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt

from safety.yardstick.items import normalised
from safety.yardstick.training import Row, texts_of

NEAR: Final = 0.8
WORDS: Final = 3
BANDS: Final = 16
WIDTH: Final = 4

Numbers = npt.NDArray[np.uint64]


def exact(rows: Sequence[Row]) -> list[bool]:
    """Whether each row repeats an earlier one, case, white space and Unicode form aside."""
    seen: set[tuple[str, ...]] = set()
    found = []
    for row in rows:
        key = tuple(map(normalised, texts_of(row)))
        found.append(key in seen)
        seen.add(key)
    return found


def near(rows: Sequence[Row]) -> list[bool]:
    """Whether each row is near an earlier one that is not itself near one before it."""
    salts = np.random.default_rng(0).integers(2**64, size=(2, BANDS * WIDTH), dtype=np.uint64)
    kept: list[Numbers] = []
    buckets: dict[tuple[int, bytes], list[int]] = {}
    found = []
    for row in rows:
        shingles = _shingles(row)
        keys = list(_keys(shingles, salts))
        alike = dict.fromkeys(place for key in keys for place in buckets.get(key, ()))
        found.append(any(_jaccard(shingles, kept[place]) >= NEAR for place in alike))
        if not found[-1]:
            for key in keys:
                buckets.setdefault(key, []).append(len(kept))
            kept.append(shingles)
    return found


def _shingles(row: Row) -> Numbers:
    """Every run of three words of each text, or a shorter text whole, as sorted numbers without repetition."""
    runs = [
        " ".join(words[begin:begin + WORDS])
        for words in (normalised(text).split() for text in texts_of(row))
        for begin in range(max(1, len(words) - WORDS + 1))
    ]
    return np.unique(np.frombuffer(b"".join(blake2b(run.encode(), digest_size=8).digest() for run in runs), "<u8"))


def _keys(shingles: Numbers, salts: Numbers) -> Iterator[tuple[int, bytes]]:
    """The signature in bands. A hash is a multiplication by an odd number and a fold, which is all that finding
    candidates needs.
    """
    mixed = (shingles[:, None] ^ salts[0]) * (salts[1] | np.uint64(1))
    signature = (mixed ^ (mixed >> np.uint64(32))).min(axis=0)
    yield from ((band, part.tobytes()) for band, part in enumerate(signature.reshape(BANDS, WIDTH)))


def _jaccard(a: Numbers, b: Numbers) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)
