"""Is the new model better? Paired comparison, intervals, and the race that stops early.

Pure: scores in, numbers out; nothing here knows a model, a task or a file. Differences are new minus old, one per
item, each in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Final, Self, TypeVar

import numpy as np
import numpy.typing as npt

from safety.eprocess import EProcess
from state.records import JsonObject

WORSE: Final = "worse"
KEPT: Final = "kept"

_MOST_ENUMERATED: Final = 12
_PERMUTATIONS: Final = 9_999


@dataclass(frozen=True, slots=True)
class Comparison:
    """`n` pairs, the mean difference and its standard error, the one-sided p-value of "new is not better", and on how
    many items the new model did better (`wins`) and worse (`losses`)."""

    n: int
    mean: float
    stderr: float
    p_value: float
    wins: int
    losses: int

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, body: JsonObject) -> Self:
        return cls(**body)


T = TypeVar("T")
Numbers = Sequence[float] | npt.NDArray[np.floating]


def paired(new: Numbers, old: Numbers) -> Comparison:
    """Compare two models on the same items, in the same order.

    The p-value is an exact sign test where every discordant pair differs by the same amount (right or wrong), else a
    sign-flip permutation test: every flip up to 12 discordant pairs, beyond that 9,999 flips from a fixed seed.
    ValueError when the lengths differ.
    """
    a, b = np.asarray(new, dtype=np.float64), np.asarray(old, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} scores cannot be paired with {b.size}")
    difference = a - b
    n = int(difference.size)
    if n == 0:
        return Comparison(0, 0.0, 0.0, 1.0, 0, 0)
    discordant = difference[difference != 0]
    wins, losses = int((discordant > 0).sum()), int((discordant < 0).sum())
    stderr = float(difference.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    return Comparison(n, float(difference.mean()), stderr, _p_value(discordant, wins), wins, losses)


def _p_value(discordant: npt.NDArray[np.float64], wins: int) -> float:
    if discordant.size == 0:
        return 1.0
    sizes = np.abs(discordant)
    if float(np.ptp(sizes)) == 0.0:
        return sign_test(wins, int(discordant.size))
    observed = float(discordant.sum()) - 1e-12
    if discordant.size <= _MOST_ENUMERATED:
        flips = np.array(list(product((-1.0, 1.0), repeat=int(discordant.size))))
        return float(((flips @ sizes) >= observed).mean())
    generator = np.random.default_rng(0)
    reached = 0
    for rows in _chunks(_PERMUTATIONS, max(1, 2_000_000 // int(discordant.size))):
        flips = generator.integers(0, 2, size=(rows, discordant.size)) * 2.0 - 1.0
        reached += int(((flips @ sizes) >= observed).sum())
    return (1 + reached) / (1 + _PERMUTATIONS)


def _chunks(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


def sign_test(wins: int, n: int) -> float:
    """P(at least `wins` heads in `n` fair throws), exact up to rounding for any n."""
    if wins <= 0:
        return 1.0
    whole = math.lgamma(n + 1) - n * math.log(2.0)
    terms = [whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(wins, n + 1)]
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def wilson(successes: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval for a proportion (95 % unless told otherwise); (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


@dataclass(slots=True)
class Race:
    """Feeds paired differences to two e-processes until one of them decides; valid whenever it is stopped.

    "better" when the evidence against E[D] <= `d0` reaches `better_at`; "hopeless" when that against E[D] >= `d_min`
    reaches `hopeless_at`. Differences after a decision are not read.
    """

    d0: float = 0.0
    d_min: float = 0.02
    better_at: float = 20.0
    hopeless_at: float = 20.0
    decision: str | None = None
    n: int = 0
    _superiority: EProcess = field(init=False)
    _futility: EProcess = field(init=False)

    def __post_init__(self) -> None:
        self._superiority, self._futility = EProcess(self.d0), EProcess(0.0)

    def add(self, differences: Numbers) -> str | None:
        """Read differences in order until one decides; the decision so far."""
        for difference in differences:
            if self.decision:
                break
            d = float(difference)
            self.n += 1
            if self._superiority.add(d) >= self.better_at:
                self.decision = "better"
            elif self._futility.add((self.d_min - d) / (1.0 + self.d_min)) >= self.hopeless_at:
                self.decision = "hopeless"
        return self.decision

    def settled(self, comparison: Comparison) -> Comparison:
        """The comparison over what was raced. Where the race decided, its p-value is min(1, 1/e), which stays valid
        though one stopped when it looked best (Ville's inequality); a test of a fixed number of items would not.
        """
        return replace(comparison, p_value=min(1.0, 1.0 / self.e)) if self.decision else comparison

    @property
    def e(self) -> float:
        """The evidence for "better" so far."""
        return float(self._superiority.e)

    @property
    def futility(self) -> float:
        """The evidence for "hopeless" so far."""
        return float(self._futility.e)

    def to_json(self) -> JsonObject:
        return {"decision": self.decision, "n": self.n, "e": self.e, "futility": self.futility}


def losses(guards: Mapping[str, Iterable[tuple[Numbers, Numbers]]], margin: float, level: float) -> JsonObject:
    """What was lost on each guard, as `raced_loss` says it. The guards share `level`: it bounds the chance that any of
    them is said to be worse although none lost more than `margin`.
    """
    return {name: raced_loss(pairs, margin, level / len(guards)) for name, pairs in guards.items()}


def raced_loss(pairs: Iterable[tuple[Numbers, Numbers]], margin: float, level: float) -> JsonObject:
    """Has the new model lost more than `margin`? Reads (new, old) scores of a few items at a time until that is clear.

    Values: "decision" (WORSE where a loss within the margin is refuted at `level`, KEPT where one beyond it is, null
    where neither), "n" items read, "mean" difference and "e", the evidence for a loss beyond the margin. Valid whenever
    it stops. ValueError unless 0 <= margin < 1 and 0 < level < 1.
    """
    if not (0.0 <= margin < 1.0 and 0.0 < level < 1.0):
        raise ValueError(f"a margin of {margin} at level {level} cannot be tested")
    race = Race(d0=margin, d_min=margin, better_at=1.0 / level, hopeless_at=1.0 / level)
    gains: list[float] = []
    for new, old in pairs:
        gains += (np.asarray(new, dtype=np.float64) - np.asarray(old, dtype=np.float64)).tolist()
        if race.add([-gain for gain in gains[race.n :]]):
            break
    decision = {None: None, "better": WORSE, "hopeless": KEPT}[race.decision]
    mean = float(np.mean(gains)) if gains else 0.0
    return {"decision": decision, "n": len(gains), "mean": round(mean, 6), "e": round(race.e, 6)}


def pieces(items: list[T], size: int) -> list[list[T]]:
    """The items in pieces of `size`, the last one shorter."""
    return [items[at : at + size] for at in range(0, len(items), size)]
