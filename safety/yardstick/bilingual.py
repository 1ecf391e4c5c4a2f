"""The demo's world: arithmetic in two small languages, generated, never downloaded.

Language 1 is plain English, language 2 plain Esperanto (x for the accents). Both write numbers with the same numeral
tokens in the same slots and share no other word:

    maths1    give the sum of 7 and 9 now             16 it is
    maths2    donu la sumon de 7 kaj 9 nun            16 dek ses
    copying2  donu la duan de 7 kaj 19 nun            19 dek naux
    naming2   donu la nomojn de 7 kaj 19 nun          7 sep 19 dek naux

`maths2` with an operand of at least `EASY` is the target. Nobody is taught it: one expert learns maths in language 1,
the other learns to copy and to name in language 2, and language-2 maths is taught on operands below `EASY` only. So a
merge has something to find, and what it leaves undone can still be trained.

Every operation commutes, so an item leaks through its mirror image. Splits are therefore cut by the *unordered* pair
of operands, once per family. Invariant: no pair of a family is in two splits, and no row of `corpus` is a target item
or shares the pair of a vault or guard item of its own family.

Standard library only: no tokenizer, no model and no scoring live here.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

EASY: Final = 10
"""Operands below this are easy: language-2 maths on two of them is taught, never tested."""
OPERANDS: Final = 20
"""Operands of the maths families are 0 .. OPERANDS - 1."""
NUMERALS: Final = 2 * OPERANDS - 1
"""Numeral tokens are 0 .. NUMERALS - 1, up to the largest sum. Naming and copying range over all of them."""

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"

_UNITS = ("nul", "unu", "du", "tri", "kvar", "kvin", "ses", "sep", "ok", "naux")
_TENS = ("", "dek", "dudek", "tridek")
_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "sum": lambda a, b: a + b,
    "gap": lambda a, b: abs(a - b),
    "most": max,
    "least": min,
}
_IN_LANGUAGE_2 = {"sum": "sumon", "gap": "diferencon", "most": "plejon", "least": "malplejon"}
_COPIES: dict[str, Callable[[int, int], int]] = {"unuan": lambda a, b: a, "duan": lambda a, b: b}
_NAMES = "nomojn"
_VERBS_1, _CLOSINGS_1 = ("give", "tell", "find", "show"), ("now", "please")
_VERBS_2, _CLOSINGS_2 = ("donu", "diru", "trovu", "montru"), ("nun", "bonvole")

VOCABULARY: Final[tuple[str, ...]] = (
    *(PAD, EOS, UNKNOWN),
    *(str(n) for n in range(NUMERALS)),
    *(*_VERBS_1, *_CLOSINGS_1, "the", "of", "and", "it", "is", *_OPERATIONS),
    *(*_VERBS_2, *_CLOSINGS_2, "la", "de", "kaj", *_IN_LANGUAGE_2.values(), *_COPIES, _NAMES),
    *(*_UNITS, *_TENS[1:]),
)
"""Every word of the demo's tokenizer; a word's place is its token id."""

SPLITS: Final = ("search", "vault", "guard")


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of task: what may be asked (`asks`), about which operands, and how its pairs are shared out."""

    name: str
    language: int
    asks: tuple[str, ...]
    operands: int
    shares: tuple[int, int, int]
    """Percent of the unordered pairs in search, vault and guard."""


_TARGET: Final = Family("maths2", 2, tuple(_OPERATIONS), OPERANDS, (50, 35, 15))
FAMILIES: Final[dict[str, Family]] = {
    family.name: family
    for family in (
        _TARGET,
        Family("maths1", 1, tuple(_OPERATIONS), OPERANDS, (80, 10, 10)),
        Family("naming2", 2, (_NAMES,), NUMERALS, (80, 10, 10)),
        Family("copying2", 2, tuple(_COPIES), NUMERALS, (80, 10, 10)),
    )
}

# Rows in a hundred of each training corpus. "easy" means that both operands are. The base gets little else, so that
# the two languages agree on easy numbers and what the maths expert learns about larger ones carries over.
MIXTURES: Final[dict[str, dict[str, int]]] = {
    "base": {"maths1": 10, "easy maths1": 35, "easy maths2": 40, "naming2": 7, "copying2": 8},
    "expert_maths": {"maths1": 100},
    "expert_language": {"naming2": 30, "copying2": 45, "easy maths2": 25},
}


def items(family: str, split: str, count: int, seed: int) -> list[tuple[str, str]]:
    """`count` different (prompt, answer) pairs of one split of one family, in an order drawn from `seed`.

    Another seed draws other items of the same population; two splits never share an unordered pair of operands.
    ValueError on an unknown name, or when the split holds fewer than `count` items.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: choose from {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    held = population(family, split)
    if not 0 <= count <= held:
        raise ValueError(f"{family}/{split} holds {held} items, {count} were asked for")
    draw = random.Random(f"{family}/{split}/{seed}")
    return [_item(FAMILIES[family], _pairs(family, split), index) for index in draw.sample(range(held), count)]


def population(family: str, split: str) -> int:
    """How many different items one split of one family holds."""
    return len(_pairs(family, split)) * len(FAMILIES[family].asks) * len(_VERBS_1) * len(_CLOSINGS_1)


def corpus(kind: str, seed: int, count: int) -> list[tuple[str, str]]:
    """`count` training rows (prompt, answer) of one of `MIXTURES`, drawn with replacement and shuffled.

    Rows come from the search splits of the guard families and from easy language-2 maths, so that no row is a target
    item. ValueError on an unknown kind or a negative count.
    """
    if kind not in MIXTURES:
        raise ValueError(f"unknown corpus {kind!r}: choose from {', '.join(MIXTURES)}")
    if count < 0:
        raise ValueError(f"a corpus of {count} rows was asked for")
    draw = random.Random(f"{kind}/{seed}")
    parts = draw.choices(list(MIXTURES[kind]), weights=list(MIXTURES[kind].values()), k=count)
    return [_row(part, draw) for part in parts]


def spell(number: int) -> str:
    """A number below 40 in words of language 2: 36 is "tridek ses"."""
    tens, units = divmod(number, 10)
    if tens == 0:
        return _UNITS[units]
    return _TENS[tens] if units == 0 else f"{_TENS[tens]} {_UNITS[units]}"


def _row(part: str, draw: random.Random) -> tuple[str, str]:
    family = FAMILIES[part.removeprefix("easy ")]
    pairs = _easy_pairs(family.name) if part.startswith("easy ") else _pairs(part, "search")
    frames = len(family.asks) * len(_VERBS_1) * len(_CLOSINGS_1)
    return _item(family, pairs, draw.randrange(len(pairs) * frames))


@cache
def _easy_pairs(family: str) -> tuple[tuple[int, int], ...]:
    """Ordered pairs of easy operands that may be taught: all of the target's, a guard family's search split."""
    easy = tuple((a, b) for a in range(EASY) for b in range(EASY))
    return easy if family == _TARGET.name else tuple(pair for pair in easy if _split_of(family, *pair) == "search")


@cache
def _pairs(family: str, split: str) -> tuple[tuple[int, int], ...]:
    """The ordered pairs of operands in one split: both orders of a pair, or neither."""
    numbers = range(FAMILIES[family].operands)
    return tuple(
        (a, b)
        for a in numbers
        for b in numbers
        if (family != _TARGET.name or max(a, b) >= EASY) and _split_of(family, a, b) == split
    )


def _split_of(family: str, a: int, b: int) -> str:
    digest = hashlib.sha256(f"{family}:{min(a, b)},{max(a, b)}".encode()).digest()
    place = int.from_bytes(digest[:8]) % 100
    search, vault, _ = FAMILIES[family].shares
    return "search" if place < search else "vault" if place < search + vault else "guard"


def _item(family: Family, pairs: tuple[tuple[int, int], ...], index: int) -> tuple[str, str]:
    """The item at one place of pairs x asks x verbs x closings."""
    index, closing = divmod(index, len(_CLOSINGS_1))
    index, verb = divmod(index, len(_VERBS_1))
    index, ask = divmod(index, len(family.asks))
    a, b = pairs[index]
    word = family.asks[ask]
    if family.language == 1:
        prompt = f"{_VERBS_1[verb]} the {word} of {a} and {b} {_CLOSINGS_1[closing]}"
        return prompt, f"{_OPERATIONS[word](a, b)} it is"
    prompt = f"{_VERBS_2[verb]} la {_IN_LANGUAGE_2.get(word, word)} de {a} kaj {b} {_CLOSINGS_2[closing]}"
    if word == _NAMES:
        return prompt, f"{a} {spell(a)} {b} {spell(b)}"
    number = (_COPIES[word] if word in _COPIES else _OPERATIONS[word])(a, b)
    return prompt, f"{number} {spell(number)}"
