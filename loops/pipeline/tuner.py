"""The tuner: which recipe runs next, and for how long. ASHA over rungs, new recipes from Optuna by ask and tell.

Asynchronous successive halving (1810.05934): a configuration among the best 1/eta of its rung goes on to the next rung
from its checkpoint; otherwise a new one starts. Everything is a function of a study's configurations and a seed: the
Optuna study is rebuilt from them each time, in memory. Invariant: a configuration's steps are walked once, in order; a
child's (`mutation`) from where it took over.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from loops.pipeline.limits import forbidden
from loops.pipeline.recipe import Recipe, Stage
from loops.pipeline.space import Choice, Genes, Space, Span
from state.records import JsonObject, digest_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

MOST_CONFIGURATIONS: Final = 32
MOST_ASKS: Final = 16
STARTUP_TRIALS: Final = 6
"""Optuna draws at random until so many configurations have a value."""


class Sampler(StrEnum):
    """Where a new recipe comes from: Optuna's tree-structured Parzen estimator, or chance."""

    TPE = "tpe"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Configuration:
    """One recipe of a study and how far it got.

    `step` is how much of its budget is spent; `trained` the step at which its `model` and `checkpoint` stand, less
    where a segment was rejected; `values` the objective at the end of each rung it finished; `failed` the reason why
    it will not go on; `timeouts` how often a budget ended it in this rung; `pairs` the artefact of the pairs that its
    base made for it ("" where those were too few); `hopeless` that it failed as every recipe of its stage would.
    `parent` is the id of the configuration that it took over from, and the first `inherited` of its values are that
    one's; `seen` the data that it was trained on so far, `asked` the prompts that it was reinforced on.
    """

    id: str
    recipe: Recipe
    genes: Genes
    step: int = 0
    trained: int = 0
    model: str | None = None
    checkpoint: str | None = None
    values: tuple[float, ...] = ()
    failed: str | None = None
    timeouts: int = 0
    pairs: str | None = None
    hopeless: bool = False
    seen: JsonObject = field(default_factory=dict)
    asked: JsonObject = field(default_factory=dict)
    parent: str | None = None
    inherited: int = 0

    @property
    def own(self) -> tuple[float, ...]:
        """The values of the rungs that it walked itself."""
        return self.values[self.inherited:]

    def to_json(self) -> JsonObject:
        return {
            "id": self.id, "recipe": self.recipe.to_json(), "genes": dict(self.genes), "step": self.step,
            "trained": self.trained, "model": self.model,
            "checkpoint": self.checkpoint, "values": list(self.values), "failed": self.failed,
            "timeouts": self.timeouts, "pairs": self.pairs, "hopeless": self.hopeless, "seen": self.seen,
            "asked": self.asked,
            "parent": self.parent, "inherited": self.inherited,
        }

    @classmethod
    def from_json(cls, body: JsonObject) -> Configuration:
        return cls(**{**body, "recipe": Recipe.from_json(body["recipe"]), "values": tuple(body["values"])})


@dataclass(frozen=True, slots=True)
class Ladder:
    """The rungs: the last is the full budget, each one before it a part 1/eta of the next."""

    eta: int = 3
    rungs: int = 3

    def __post_init__(self) -> None:
        if self.eta < 2 or self.rungs < 1:
            raise ValueError("a ladder has an eta of at least 2 and at least one rung")

    def ends(self, full: int) -> list[int]:
        """The step at which each rung ends, strictly rising; of rungs that would coincide only the highest is left."""
        ends = [-(-full // self.eta ** (self.rungs - 1 - rung)) for rung in range(self.rungs)]
        return [end for end, following in zip(ends, [*ends[1:], full + 1], strict=True) if end < following]

    def begin(self, configuration: Configuration) -> int:
        """Where the rung that the configuration stands in begins."""
        done = len(configuration.values)
        return self.ends(configuration.recipe.steps)[done - 1] if done else 0

    def end(self, configuration: Configuration) -> int:
        """Where that rung ends."""
        return self.ends(configuration.recipe.steps)[len(configuration.values)]

    def aim(self, configuration: Configuration) -> int:
        """How far it goes in one cycle: to the rung's end, or by half as much of the rung after each time that a budget
        ended it there, so that what is too long for its seconds comes to an end in parts.
        """
        begin, end = self.begin(configuration), self.end(configuration)
        return min(end, configuration.step - ((begin - end) >> configuration.timeouts))

    def finished(self, configuration: Configuration) -> bool:
        return len(configuration.values) >= len(self.ends(configuration.recipe.steps))


def paused(
    configurations: Sequence[Configuration], ladder: Ladder, in_flight: Container[str] = ()
) -> Configuration | None:
    """One that a budget stopped before or inside a rung; it goes on before anything else. `in_flight`: ids not to
    choose.
    """
    for configuration in configurations:
        if configuration.id not in in_flight and configuration.failed is None and not ladder.finished(configuration):
            begun = configuration.step > ladder.begin(configuration)
            if begun or not configuration.own:
                return configuration
    return None


def survivor(
    configurations: Sequence[Configuration], ladder: Ladder, in_flight: Container[str] = ()
) -> Configuration | None:
    """The configuration that ASHA lets climb, the highest rung first; None where a new one should start.

    A child counts in the rungs that it walked itself, so what it inherited lets nobody climb.
    """
    for rung in reversed(range(ladder.rungs - 1)):
        reached = [c for c in configurations if c.inherited <= rung < len(c.values)]
        best = sorted(reached, key=lambda c: (-c.values[rung], c.id))[: len(reached) // ladder.eta]
        for configuration in best:
            waiting = len(configuration.values) == rung + 1 and configuration.failed is None
            if waiting and configuration.id not in in_flight and not ladder.finished(configuration):
                return configuration
    return None


@dataclass(frozen=True, slots=True)
class Hint:
    """How genes ranked on a related model, between 0 and 1 and nearer to the middle the less the two share."""

    stage: Stage
    genes: Genes
    rank: float


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What carries over from one base model to the next: payoffs of sources, recipes that won, limits met, and hints
    from related models, the nearest first and of each the best first.
    """

    payoffs: JsonObject
    best: Mapping[str, Sequence[Genes]]
    limits: Sequence[JsonObject]
    hints: Sequence[Hint] = ()


def fresh(
    configurations: Sequence[Configuration], space: Space, sources: Sequence[str], knowledge: Knowledge, seed: int,
    sampler: Sampler = Sampler.TPE,
) -> Configuration:
    """A configuration that this study has not tried and that no learned limit forbids.

    First each stage's default, then each stage's best recipe on the most closely related model and on any earlier one,
    then what Optuna suggests. Where it suggests nothing that is allowed, its last suggestion is taken at the gentlest
    settings.
    """
    known = [(stage, space.default_genes(stage, sources)) for stage in space.stages]
    known += [(stage, genes) for stage in space.stages for genes in _best_before(stage, space, sources, knowledge)]
    for stage, genes in known:
        made = _made(stage, genes, space, sources, knowledge, seed)
        if not tried(configurations, stage, genes) and not forbidden(made.recipe, knowledge.limits):
            return made
    study = rebuilt(configurations, space, sources, seed, knowledge.hints, sampler)
    for _ in range(MOST_ASKS):
        stage, genes = _suggested(study.ask(), space, sources)
        made = _made(stage, genes, space, sources, knowledge, seed)
        if not tried(configurations, stage, genes) and not forbidden(made.recipe, knowledge.limits):
            return made
    return _made(stage, _gentlest(stage, genes, space, sources), space, sources, knowledge, seed)


def rebuilt(
    configurations: Sequence[Configuration], space: Space, sources: Sequence[str], seed: int,
    hints: Sequence[Hint] = (), sampler: Sampler = Sampler.TPE,
) -> Study:
    """The Optuna study that these configurations amount to: equal arguments suggest equal recipes.

    Its objective is the rank, so that hints from other models stand on the same scale. What lies outside today's space
    (the settings changed) is left out; what failed counts as worst.
    """
    import optuna  # half a second: only when a new recipe is wanted

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=_sampler(sampler, seed))
    found = ranks(configurations)
    told = [(hint.stage, hint.genes, hint.rank, False) for hint in reversed(hints)]
    told += [(c.recipe.stage, c.genes, found[c.id], c.failed is not None) for c in configurations if c.id in found]
    for stage, genes, rank, failed in told:
        if stage not in space.stages or not inside(genes, stage, space, sources):
            continue
        distributions = {name: _distribution(gene) for name, gene in space.genes(stage, sources).items()}
        study.add_trial(optuna.trial.create_trial(
            state=optuna.trial.TrialState.PRUNED if failed else optuna.trial.TrialState.COMPLETE,
            value=None if failed else rank,
            params={"stage": str(stage), **genes},
            distributions={"stage": _stages(space), **distributions},
        ))
    return study


def ranks(configurations: Sequence[Configuration]) -> dict[str, float]:
    """By id: how each configuration that was measured stands among them, above 0 and below 1; 0 for what failed."""
    measured = sorted(
        (c for c in configurations if c.own and c.failed is None), key=lambda c: (c.values[-1], c.id)
    )
    found = {c.id: 0.0 for c in configurations if c.failed is not None}
    return found | {c.id: (place + 0.5) / len(measured) for place, c in enumerate(measured)}


def inside(genes: Genes, stage: Stage, space: Space, sources: Sequence[str]) -> bool:
    """Whether genes are a point of today's space."""
    allowed = space.genes(stage, sources)
    return genes.keys() == allowed.keys() and all(gene.holds(genes[name]) for name, gene in allowed.items())


def tried(configurations: Sequence[Configuration], stage: Stage, genes: Genes) -> bool:
    return any(c.recipe.stage is stage and dict(c.genes) == genes for c in configurations)


def trimmed(configurations: Sequence[Configuration], ladder: Ladder) -> list[Configuration]:
    """At most `MOST_CONFIGURATIONS`: the worst of those that will not go on leave first."""
    kept = list(configurations)
    while len(kept) > MOST_CONFIGURATIONS:
        over = [c for c in kept[:-1] if c.failed is not None or ladder.finished(c)] or kept[:-1]
        kept.remove(min(over, key=lambda c: (c.failed is None, c.values[-1] if c.values else 0.0)))
    return kept


def _made(
    stage: Stage, genes: Genes, space: Space, sources: Sequence[str], knowledge: Knowledge, seed: int
) -> Configuration:
    recipe = space.recipe(stage, genes, sources, knowledge.payoffs)
    return Configuration(digest_of([recipe.to_json(), seed])[:12], recipe, genes)


def _best_before(stage: Stage, space: Space, sources: Sequence[str], knowledge: Knowledge) -> list[Genes]:
    """The best recipe on the most closely related model and the best one on any, if they still lie in the space."""
    related = [hint.genes for hint in knowledge.hints if hint.stage is stage and hint.rank > 0.5]
    found = []
    for each in (related, knowledge.best.get(stage, ())):
        found += [dict(genes) for genes in each if inside(dict(genes), stage, space, sources)][:1]
    return found


def _sampler(sampler: Sampler, seed: int) -> BaseSampler:
    from optuna.samplers import RandomSampler, TPESampler

    if sampler is Sampler.RANDOM:
        return RandomSampler(seed=seed % 2**32)
    return TPESampler(seed=seed % 2**32, n_startup_trials=STARTUP_TRIALS)


def _suggested(trial: Trial, space: Space, sources: Sequence[str]) -> tuple[Stage, Genes]:
    stage = Stage(trial.suggest_categorical("stage", [str(stage) for stage in space.stages]))
    genes: Genes = {}
    for name, gene in space.genes(stage, sources).items():
        if isinstance(gene, Span):
            genes[name] = trial.suggest_float(name, gene.low, gene.high, log=gene.log)
        else:
            chosen = trial.suggest_categorical(name, list(gene.options))
            assert chosen is not None
            genes[name] = chosen
    return stage, genes


def _gentlest(stage: Stage, genes: Genes, space: Space, sources: Sequence[str]) -> Genes:
    gentle = dict(genes)
    for name, gene in space.genes(stage, sources).items():
        if name == f"{stage}.learning_rate" and isinstance(gene, Span):
            gentle[name] = gene.low
        if name in (f"{stage}.batch", f"{stage}.group") and isinstance(gene, Choice):
            gentle[name] = min(float(option) for option in gene.options)
    return gentle


def _stages(space: Space) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution

    return CategoricalDistribution([str(stage) for stage in space.stages])


def _distribution(gene: Span | Choice) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(gene, Span):
        return FloatDistribution(gene.low, gene.high, log=gene.log)
    return CategoricalDistribution(list(gene.options))
