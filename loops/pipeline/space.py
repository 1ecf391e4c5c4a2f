"""The space of recipes: which genes there are, and how genes become a recipe and back.

A gene is one number or one choice that the tuner may vary around a stage's default recipe. Which values are worth
trying is the tuner's business; which are forbidden, the bounds'. Invariant: the default recipe is a point of the space,
and where `check` found nothing every point is a recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from loops.pipeline.mixture import shares
from loops.pipeline.recipe import DEFAULTS, Adapter, AdapterKind, Loss, Recipe, Schedule, Stage
from state.records import JsonObject

Gene = float | int | str
Genes = dict[str, Gene]

MOST_TILT: Final = 1.5
"""A source's weight in the mixture is tilted by at most a factor e^1.5 either way."""


@dataclass(frozen=True, slots=True)
class Span:
    """A number between two ends, on a logarithmic scale where `log`."""

    low: float
    high: float
    log: bool = False

    def holds(self, value: Gene) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Choice:
    options: tuple[Gene, ...]

    def holds(self, value: Gene) -> bool:
        return value in self.options


@dataclass(frozen=True, slots=True)
class Ranges:
    """How far a recipe may vary from its stage's default; the default itself is always allowed.

    `learning_rate`, `batch`, `group` and `replay` are factors on the default; the rest are the values themselves.
    """

    learning_rate: tuple[float, float] = (0.2, 3.0)
    batch: tuple[float, ...] = (0.5, 1.0, 2.0)
    warmup: tuple[float, ...] = (0.0, 0.05, 0.1)
    schedules: tuple[Schedule, ...] = (Schedule.CONSTANT, Schedule.LINEAR, Schedule.COSINE)
    adapters: tuple[AdapterKind, ...] = ()
    ranks: tuple[int, ...] = (8, 16, 32)
    alpha_by_rank: tuple[float, ...] = (1.0, 2.0)
    replay: tuple[float, ...] = (0.5, 1.0, 2.0)
    temperatures: tuple[float, ...] = (0.8, 1.0, 1.2)
    group: tuple[float, ...] = (1.0, 2.0)
    betas: tuple[float, ...] = (0.0, 0.02)
    dpo_betas: tuple[float, ...] = (0.03, 0.1, 0.3)
    losses: tuple[Loss, ...] = (Loss.SIGMOID, Loss.HINGE, Loss.IPO)


RANGES: Final = Ranges()


@dataclass(frozen=True, slots=True)
class Space:
    """The stages there are, where each one starts, and how far it may vary. `preferences` are the sources that hold
    pairs of answers: dpo learns from them alone, the other stages from the others.
    """

    stages: tuple[Stage, ...] = (Stage.SFT, Stage.GRPO)
    defaults: Mapping[Stage, Recipe] = field(default_factory=lambda: dict(DEFAULTS))
    ranges: Ranges = RANGES
    preferences: frozenset[str] = frozenset()

    def genes(self, stage: Stage, sources: Sequence[str]) -> dict[str, Span | Choice]:
        """What may vary in one stage, by gene name; the names say the stage, so stages never share a gene."""
        default, ranges = self.defaults[stage], self.ranges
        low, high = ranges.learning_rate
        found: dict[str, Span | Choice] = {
            "learning_rate": Span(default.learning_rate * min(low, 1.0), default.learning_rate * max(high, 1.0), True),
            "batch": _choice(1.0, ranges.batch),
            "warmup": _choice(default.warmup, ranges.warmup),
            "schedule": _choice(str(default.schedule), [str(s) for s in ranges.schedules]),
            "adapter": _choice(str(default.adapter.kind), [str(kind) for kind in ranges.adapters]),
            "rank": _choice(default.adapter.rank, ranges.ranks),
            "alpha_by_rank": _choice(default.adapter.alpha / default.adapter.rank, ranges.alpha_by_rank),
        }
        if stage is Stage.GRPO:
            found |= {
                "replay": _choice(1.0, ranges.replay), "temperature": _choice(default.temperature, ranges.temperatures),
                "group": _choice(1.0, ranges.group), "beta": _choice(default.beta, ranges.betas),
            }
        if stage is Stage.DPO:
            found |= {
                "beta": _choice(default.beta, ranges.dpo_betas),
                "loss": _choice(str(default.loss), [str(loss) for loss in ranges.losses]),
            }
        if found["adapter"] == Choice((str(AdapterKind.NONE),)):
            del found["rank"], found["alpha_by_rank"]
        own = self.sources(stage, sources)
        if len(own) > 1:
            found |= {f"tilt:{source}": Span(-MOST_TILT, MOST_TILT) for source in own}
        return {f"{stage}.{name}": gene for name, gene in found.items()}

    def sources(self, stage: Stage, sources: Sequence[str]) -> list[str]:
        """Those of the sources that a stage learns from, sorted."""
        return sorted(source for source in sources if (source in self.preferences) == (stage is Stage.DPO))

    def check(self) -> None:
        """ValueError names the first gene of a stage whose range leaves what a recipe may hold.

        Every gene has a rule of its own, so its ends around the default stand for all points.
        """
        for stage in self.stages:
            start = self.default_genes(stage, ())
            for name, gene in self.genes(stage, ()).items():
                for value in (gene.low, gene.high) if isinstance(gene, Span) else gene.options:
                    try:
                        self.recipe(stage, {**start, name: value}, (), {})
                    except (ValueError, OverflowError) as error:
                        raise ValueError(f"{name} with its range reaches {value}: {error}") from error

    def default_genes(self, stage: Stage, sources: Sequence[str]) -> Genes:
        """The point at which the stage's default recipe lies."""
        recipe = self.defaults[stage]
        point: Genes = {
            "learning_rate": recipe.learning_rate, "batch": 1.0, "warmup": recipe.warmup,
            "schedule": str(recipe.schedule), "adapter": str(recipe.adapter.kind), "rank": recipe.adapter.rank,
            "alpha_by_rank": recipe.adapter.alpha / recipe.adapter.rank, "replay": 1.0,
            "temperature": recipe.temperature, "group": 1.0, "beta": recipe.beta, "loss": str(recipe.loss),
        }
        return {
            name: point.get(name.removeprefix(f"{stage}."), 0.0) for name in self.genes(stage, sources)
        }

    def recipe(self, stage: Stage, genes: Genes, sources: Sequence[str], payoffs: JsonObject) -> Recipe:
        """The recipe at one point. Its mixture is settled here, so the recipe needs nothing else later."""
        default = self.defaults[stage]

        def gene(name: str, otherwise: Gene) -> Gene:
            return genes.get(f"{stage}.{name}", otherwise)

        rank = int(gene("rank", default.adapter.rank))
        alpha = rank * float(gene("alpha_by_rank", default.adapter.alpha / default.adapter.rank))
        return replace(
            default,
            learning_rate=float(gene("learning_rate", default.learning_rate)),
            batch=max(1, round(default.batch * float(gene("batch", 1.0)))),
            warmup=float(gene("warmup", default.warmup)),
            schedule=Schedule(str(gene("schedule", str(default.schedule)))),
            adapter=Adapter(AdapterKind(str(gene("adapter", str(default.adapter.kind)))), rank, alpha),
            replay=default.replay * float(gene("replay", 1.0)),
            temperature=float(gene("temperature", default.temperature)),
            group=max(2, round(default.group * float(gene("group", 1.0)))),
            beta=float(gene("beta", default.beta)),
            loss=Loss(str(gene("loss", str(default.loss)))),
            mixture=self._mixture(default, genes, self.sources(stage, sources), payoffs),
        )

    def _mixture(self, default: Recipe, genes: Genes, sources: Sequence[str], payoffs: JsonObject) -> dict[str, float]:
        """By what the sources have paid, unless the operator's default names shares; tilted by the genes."""
        tilt = {name: float(genes.get(f"{default.stage}.tilt:{name}", 0.0)) for name in sources}
        if not sources:
            return {}
        if not any(default.mixture.get(name, 0.0) for name in sources):
            return shares(payoffs, sources, tilt)
        weights = {n: share * math.exp(tilt[n]) for n, share in default.shares(dict.fromkeys(sources)).items()}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def _choice(default: Gene, options: Sequence[Gene]) -> Choice:
    """The options with the default among them, in a fixed order: its own if it is new, first."""
    return Choice(tuple(options) if default in options else (default, *options))
