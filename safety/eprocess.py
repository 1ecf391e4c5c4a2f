"""The e-process: evidence against "the mean difference is at most d0" that may be looked at after every item.

Standard library only and pure, for the gate, the guards and the races on search items. Not here: levels and verdicts
(`safety.gate`). Invariant: while the hypothesis holds, the chance that `e` ever reaches 1/a is at most a, whenever one
looks and whenever one stops (Ville's inequality), because each of the averaged products is a non-negative
supermartingale that starts at 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from state.records import JsonObject

BETS = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.27, 0.35, 0.45, 0.6, 0.75, 0.9)
LARGEST_LOG = 690.0     # exp of more would leave what a float, and so JSON, can hold


@dataclass(slots=True)
class EProcess:
    """Tests H0: E[D] <= d0 for independent D in [-1, 1], with -1 < d0 < 1.

    E_t = mean over j of prod_{i<=t} (1 + l_j (D_i - d0)), l_j = BETS[j] / (1 + d0): no factor is under 1 - BETS[j].
    Superiority has d0 >= 0; a guard with margin m, H0: E[D] <= -m, has d0 = -m; futility feeds `futility_of`.
    """

    d0: float = 0.0
    count: int = 0
    logs: list[float] = field(default_factory=lambda: [0.0] * len(BETS))   # log of each product

    def __post_init__(self) -> None:
        if not -1.0 < self.d0 < 1.0:
            raise ValueError(f"d0 must lie between -1 and 1, got {self.d0}")
        if len(self.logs) != len(BETS):
            raise ValueError(f"an e-process keeps {len(BETS)} products, got {len(self.logs)}")

    def add(self, difference: float) -> float:
        """Take one difference in [-1, 1] and return E after it. Raises ValueError outside that range or for NaN."""
        if not -1.0 <= difference <= 1.0:
            raise ValueError(f"a difference must lie in [-1, 1], got {difference}")
        excess = difference - self.d0
        if excess:
            scale = excess / (1.0 + self.d0)
            self.logs = [log + math.log1p(bet * scale) for log, bet in zip(self.logs, BETS, strict=True)]
        self.count += 1
        return self.e

    def extend(self, differences: Iterable[float]) -> float:
        """Take several differences and return E after the last."""
        for difference in differences:
            self.add(difference)
        return self.e

    @property
    def e(self) -> float:
        """The evidence: 1 at the start, capped where a float ends."""
        top = max(self.logs)
        log_mean = top + math.log(sum(math.exp(log - top) for log in self.logs) / len(BETS))
        return math.exp(min(log_mean, LARGEST_LOG))

    def to_json(self) -> JsonObject:
        return {"d0": self.d0, "count": self.count, "logs": list(self.logs)}

    @classmethod
    def from_json(cls, body: JsonObject) -> EProcess:
        return cls(float(body["d0"]), int(body["count"]), [float(log) for log in body["logs"]])


def futility_of(difference: float, least_gain: float) -> float:
    """X = (d_min - D) / (1 + d_min), in [-1, 1]: an EProcess(0.0) fed with it tests H0: E[D] >= d_min.

    `least_gain` is d_min, the smallest gain worth finding, with 0 <= d_min < 1.
    """
    return (least_gain - difference) / (1.0 + least_gain)
