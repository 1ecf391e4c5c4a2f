"""Shaping: the bounded reward, the evidence from which its weights are learned, and when to shape at all.

    R = r0 + B sum_k a_k c_k (phi_k - 1/2),  a = z / max(1, |z|_1),  B <= 1/2

so the bonus never exceeds a quarter and a right answer always outranks a wrong one. The weights come from a ridge
regression of r0 on the features inside prompt groups. Pure; numpy and standard library: job functions import it too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import numpy as np

from loops.reward.catalogue import feature, source_of
from state.records import JsonObject

CAP: Final = 0.5
"""Hard limit on the strength B, whatever a shaping says."""
MOST_FEATURES: Final = 8
DECAY_A_STEP: Final = 0.95
"""With references: evidence fades once a training step."""
DECAY_A_GROUP: Final = 0.97
"""Without references: evidence fades with each mixed group."""
SUCCESS_DECAY: Final = 0.99
"""The success average fades with each group, mixed or not."""
RIDGE: Final = 0.1
LEAST_SHARE: Final = 0.15
"""Weights under this share of the largest are set to 0."""
GROUPS_NEEDED: Final = 8
GROUPS_NEEDED_WITHOUT_REFERENCES: Final = 3
ON_BELOW: Final = 0.01
OFF_ABOVE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Shaping:
    """Weights z by feature name, and the strength B. No weights, or no strength: the strict reward alone."""

    weights: Mapping[str, float] = field(default_factory=dict)
    strength: float = 0.0

    @property
    def is_zero(self) -> bool:
        return self.strength <= 0 or not any(self.weights.values())

    @property
    def heaviest(self) -> str | None:
        """The feature with the largest weight; by name among equals."""
        return max(sorted(self.weights), key=lambda name: abs(self.weights[name]), default=None)

    def to_json(self) -> JsonObject:
        return {"weights": dict(self.weights), "strength": self.strength}

    @classmethod
    def from_json(cls, body: JsonObject) -> Shaping:
        return cls(dict(body["weights"]), float(body["strength"]))


ZERO: Final = Shaping()


def bonus(r0: float, phis: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """sum_k a_k c_k (phi_k - 1/2), in [-1/2, 1/2]: what a strength multiplies. Each phi is held to [0, 1].

    With a fixed strength this is also the shaping part of the monitor's proxy, r0 + B0 * bonus.
    """
    if not weights:
        return 0.0
    scale = max(1.0, sum(abs(weight) for weight in weights.values()))
    total = sum(
        weight / scale * feature(name).klass.factor(r0) * (min(1.0, max(0.0, phis[name])) - 0.5)
        for name, weight in weights.items()
    )
    return min(0.5, max(-0.5, total))


def shaped_reward(r0: float, phis: Mapping[str, float], shaping: Shaping) -> float:
    """R of one completion. `phis` holds at least the features that have a weight."""
    if shaping.is_zero:
        return float(r0)
    return r0 + min(CAP, shaping.strength) * bonus(r0, phis, shaping.weights)


def score(phis: Mapping[str, float], shaping: Shaping) -> float:
    """sum_k z_k phi_k without classes: how good the features call a completion. Its order is what the monitor compares
    with r0; the classed bonus would not do, because partial credit is 0 on right answers by construction.
    """
    return sum(weight * phis[name] for name, weight in shaping.weights.items())


def rank_correlation(scores: Sequence[float], truths: Sequence[float]) -> float | None:
    """Spearman's rank correlation with mean ranks for ties; None where either side does not vary."""
    if len(scores) < 2 or min(scores) == max(scores) or min(truths) == max(truths):
        return None
    return float(np.corrcoef(_ranks(scores), _ranks(truths))[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, inverse, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[inverse])


Group = tuple[Sequence[tuple[Sequence[float], float]], Sequence[float] | None]
"""The samples of one prompt, (phi, r0) each, and phi of its reference answer if any."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Sufficient statistics of the ridge rule over `features`, plus the success average. A value: adding returns anew.

    `sxx` (K x K, row by row) and `sxy` (K) are sums over rows centred within their group, `rows` their decayed number,
    `groups` how many groups have spoken (not decayed), `referenced` how many of them had a reference answer, `seen`
    and `solved` the decayed number of groups and their summed success.
    """

    features: tuple[str, ...]
    sxx: tuple[float, ...]
    sxy: tuple[float, ...]
    rows: float = 0.0
    groups: int = 0
    referenced: int = 0
    seen: float = 0.0
    solved: float = 0.0

    @classmethod
    def empty(cls, features: Iterable[str]) -> Evidence:
        """ValueError on an unknown feature and on more than eight."""
        names = tuple(features)
        for name in names:
            source_of(name)
        if len(names) > MOST_FEATURES:
            raise ValueError(f"a shaping has at most {MOST_FEATURES} features, {len(names)} were given")
        return cls(names, (0.0,) * len(names) ** 2, (0.0,) * len(names))

    @property
    def success(self) -> float | None:
        """Average r0 of the samples seen lately; None before the first group."""
        return self.solved / self.seen if self.seen > 0 else None

    def add_group(
        self, rows: Sequence[tuple[Sequence[float], float]], reference: Sequence[float] | None = None
    ) -> Evidence:
        """One prompt group: (phi in the order of `features`, r0) per sample, and phi of the reference answer if any."""
        return self.add_groups([(rows, reference)])

    def add_groups(self, groups: Iterable[Group]) -> Evidence:
        """Some prompt groups, as `add_group` takes them, one after the other.

        A group in which everything counts the same (no reference and all wrong or all right) tells nothing about the
        features; it still counts for the success average. Where there is no reference the evidence fades here;
        otherwise call `decay` once a training step.
        """
        width = len(self.features)
        sxx, sxy = np.array(self.sxx).reshape(width, width), np.array(self.sxy)
        held, spoken, referenced, seen, solved = self.rows, self.groups, self.referenced, self.seen, self.solved
        for rows, reference in groups:
            if not rows:
                continue
            seen = seen * SUCCESS_DECAY + 1.0
            solved = solved * SUCCESS_DECAY + sum(r0 for _, r0 in rows) / len(rows)
            labelled = rows if reference is None else [*rows, (reference, 1.0)]
            if len({r0 for _, r0 in labelled}) == 1:
                continue
            x, y = np.array([phi for phi, _ in labelled], float), np.array([r0 for _, r0 in labelled], float)
            x -= x.sum(axis=0) / len(labelled)
            y -= y.sum() / len(labelled)
            fading = DECAY_A_GROUP if reference is None else 1.0
            sxx, sxy, held = sxx * fading + x.T @ x, sxy * fading + x.T @ y, held * fading + len(labelled)
            spoken, referenced = spoken + 1, referenced + (reference is not None)
        return Evidence(
            self.features, tuple(sxx.ravel().tolist()), tuple(sxy.tolist()), held, spoken, referenced, seen, solved
        )

    def decay(self, factor: float = DECAY_A_STEP) -> Evidence:
        """Older evidence counts less; call once a training step where references exist."""
        return replace(
            self, sxx=tuple(v * factor for v in self.sxx), sxy=tuple(v * factor for v in self.sxy),
            rows=self.rows * factor,
        )

    def forgetting(self, name: str) -> Evidence:
        """Without what was seen of one feature, which is measured otherwise from now on."""
        if name not in self.features:
            return self
        place, width = self.features.index(name), len(self.features)
        sxx, sxy = np.reshape(self.sxx, (width, width)).copy(), np.array(self.sxy)
        sxx[place], sxx[:, place], sxy[place] = 0.0, 0.0, 0.0
        return replace(self, sxx=tuple(sxx.ravel().tolist()), sxy=tuple(sxy.tolist()))

    def weights(self, allowed: Iterable[str] | None = None) -> dict[str, float]:
        """a_k > 0 by feature, summing to 1, or {} while evidence is thin.

        b = (Sxx + .1 mean-diagonal I)^-1 Sxy over the `allowed` features, times each one's deviation; negatives and
        what is under .15 of the largest are dropped.
        """
        keep = [k for k, name in enumerate(self.features) if allowed is None or name in set(allowed)]
        needed = GROUPS_NEEDED if self.referenced else GROUPS_NEEDED_WITHOUT_REFERENCES
        if self.groups < needed or not keep:
            return {}
        sxx = np.reshape(self.sxx, (len(self.features), len(self.features)))[np.ix_(keep, keep)]
        mean_diagonal = float(np.mean(np.diag(sxx)))
        if mean_diagonal <= 1e-12 or self.rows <= 0:
            return {}
        b = np.linalg.solve(sxx + RIDGE * mean_diagonal * np.eye(len(keep)), np.asarray(self.sxy)[keep])
        b = b * np.sqrt(np.maximum(np.diag(sxx), 0.0) / self.rows)
        top = float(b.max())
        if not math.isfinite(top) or top <= 1e-9:
            return {}
        b = np.where(b >= LEAST_SHARE * top, b, 0.0)
        return {self.features[k]: float(v / b.sum()) for k, v in zip(keep, b, strict=True) if v > 0}

    def to_json(self) -> JsonObject:
        return {
            "features": list(self.features), "sxx": list(self.sxx), "sxy": list(self.sxy), "rows": self.rows,
            "groups": self.groups, "referenced": self.referenced, "seen": self.seen, "solved": self.solved,
        }

    @classmethod
    def from_json(cls, body: JsonObject) -> Evidence:
        return cls(
            tuple(body["features"]), tuple(body["sxx"]), tuple(body["sxy"]), body["rows"], body["groups"],
            body["referenced"], body["seen"], body["solved"],
        )


class Switch(StrEnum):
    """Whether shaping may be used: not yet needed, on, or off for good."""

    OFF = "off"
    ON = "on"
    CLOSED = "closed"

    def after(self, success: float | None) -> Switch:
        """On where success is very rare, off for good where it is common, as it was in between (ALGORITHMS 7.5)."""
        if self is Switch.CLOSED or success is None:
            return self
        if success > OFF_ABOVE:
            return Switch.CLOSED
        return Switch.ON if success < ON_BELOW else self


def annealed(start: float, step: int, horizon: int) -> float:
    """B_t = B0 (1 - t/T), never negative."""
    return start * max(0.0, 1.0 - step / horizon) if horizon > 0 else 0.0
