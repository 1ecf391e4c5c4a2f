"""The architecture loop: merges and paths while their search climbs, then the inner loop trains what was found.

A candidate is a genome. A merge, crossover or path is screened on shared search items, raced against the incumbent on
fresh ones and built only when it wins. After `patience` proposals without a promotion the search has run dry. Where
both spaces are searched, paths through the layers of the incumbent and the parents follow the merges; then the
candidate is to keep the incumbent as it is and train it: child cycles of the inner loop. A trained model that is
promoted joins the parents of merges, unless it has another depth than they. Deciding only: tensors are the business of
`loops.work`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from loops.architecture.catcma import CatCma
from loops.architecture.genome import Definition, models_of
from loops.architecture.paths import PATH, PathDefinition
from loops.architecture.population import M2n2
from loops.architecture.search import WORST, CmaEs, RandomSearch, Search, Told
from loops.architecture.settings import ArchitectureSettings, SearchKind, Space
from loops.architecture.stages import CoarseToFine
from loops.loop import Bench, Loop, Trial
from safety.operators import MOST_PARENTS, OPERATORS, Operator
from safety.yardstick.compare import WORSE
from state.records import Budget, Candidate, JsonObject, LoopName, Outcome, Verdict, digest_of, seed_from

KEEP = "keep"


@dataclass(frozen=True, slots=True)
class ArchitectureLoop:
    """Satisfies `loops.loop.Loop`.

    `tasks` are the target tasks as JSON (`TaskSpec.to_json`), `guards` those that must not get worse; `base` is what
    deltas are taken from and `parents` the models to merge, all by digest; `seal` is the digest of the sealed item ids
    that no drawn item may have. `depth` tells how many layers a model has, by its digest: what can be merged, and how
    long a path can be, depends on it. Those parents that are `adapters` over the base, and no models, are built before
    anything is made of them alone.
    """

    settings: ArchitectureSettings
    tasks: Sequence[JsonObject]
    inner: Loop
    base: str
    parents: tuple[str, ...]
    seal: str | None = None
    guards: Sequence[JsonObject] = ()
    depth: Callable[[str], int] | None = None
    adapters: frozenset[str] = frozenset()
    name: LoopName = field(default=LoopName.ARCHITECTURE, init=False)

    def start(self) -> JsonObject:
        settings = self.settings
        limit = settings.path_patience if settings.space is Space.DATA_FLOW else settings.patience
        return self._in_shape({"epoch": 0, "trained": [], "idle": 0, "limit": limit})

    def propose(
        self, state: JsonObject, base: str, incumbent: str, seed: int, in_flight: Sequence[Candidate] = ()
    ) -> Candidate:
        changes = [candidate.change for candidate in in_flight]
        training = any(change["kind"] == KEEP for change in changes if "kind" in change)
        if state["idle"] >= state["limit"] and not training:
            return Candidate(self.name, {"kind": KEEP}, incumbent, incumbent)
        state = self._begun(self._in_shape(state), incumbent)
        paths = state["paths"]
        mark = self._mark(state) if paths is None else self._path_mark(paths)
        mine = [other for other in changes if _carries(other, mark)]
        change = self._search(state).ask(state["search"], mine) if paths is None else (
            self._paths(paths).ask(paths["search"], mine))
        if self.adapters & set(change["parents"]):
            change = {"base": self.base, **change}
        return Candidate(self.name, {**change, "search": {**change["search"], **mark}}, base, incumbent)

    def run(self, candidate: Candidate, bench: Bench) -> Trial:
        if candidate.change["kind"] == KEEP:
            return self._train_and_compare(candidate, bench)
        values = self._screen(candidate, bench)
        won = self._won(values)
        if not won and not self._worth_keeping(candidate.change, bench.cycle.state, _told(_lesson(values), False)):
            return Trial(None, values)
        built = self._build(candidate.change, bench)
        if won and self.settings.train_survivors:
            trained = self._train(built, bench)
            return Trial(trained, {**values, "member": built, "trained": trained != built})
        return Trial(built, {**values, "member": built})

    def judge(self, candidate: Candidate, trial: Trial) -> Outcome:
        values = trial.values
        if candidate.change["kind"] == KEEP:
            return self._judge_training(trial)
        shown = ("fitness", "incumbent_fitness", "race", "comparison", "measures", "guards")
        evidence: JsonObject = {key: values[key] for key in shown if key in values}
        won = self._won(values)
        measured = _in_words(values.get("comparison"), values["fitness"], values["incumbent_fitness"])
        verdict = Verdict.PROMOTED if won else Verdict.REJECTED
        name = candidate.change.get("operator", candidate.change["kind"])
        reason = f"{name} {self._against_the_incumbent(values)}: {measured}{_losses_in_words(values)}"
        return Outcome(verdict, reason, trial.result if won else None, evidence, _lesson(values))

    def learn(self, state: JsonObject, candidate: Candidate, outcome: Outcome) -> JsonObject:
        state, promoted = self._in_shape(state), outcome.verdict is Verdict.PROMOTED
        if candidate.change["kind"] == KEEP:
            after = {**state, "idle": 0, "limit": self.settings.merges_between}
            if self.settings.space is Space.BOTH:
                after["paths"] = None                                       # merges again
            elif state["paths"] is not None and promoted:
                after["paths"] = self._first_paths()                        # paths through the new incumbent
            return self._joined_by(after, str(outcome.result)) if promoted else after
        lesson = outcome.lesson
        told = _told(lesson, promoted)
        idle, limit = (0, self._patience(state)) if promoted else (state["idle"] + 1, state["limit"])
        after = {**self._taught(state, candidate.change, told), "idle": idle, "limit": limit}
        if idle >= limit and self.settings.space is Space.BOTH and state["paths"] is None:
            after = {**after, "idle": 0, "paths": self._first_paths(), "limit": self.settings.path_patience}
        trained = promoted and lesson.get("trained", False)
        return self._joined_by(after, str(outcome.result)) if trained else after

    def _joined_by(self, state: JsonObject, model: str) -> JsonObject:
        """A trained model became the incumbent: it is a parent of merges from now on, and their search starts over
        around it. One of another depth than the other parents cannot be merged with them.
        """
        if self._deep(model) != self._deep(self.base):
            return state
        if self.settings.search is SearchKind.M2N2:
            return {**state, "search": self._archive().welcome(state["search"], model)}
        room = min(self.settings.trained_parents, MOST_PARENTS - len(self.parents))
        if room < 1:
            return state
        kept = [*state["trained"], model][-room:]
        after = {**state, "trained": kept, "epoch": state["epoch"] + 1}
        return {**after, "search": self._search(after).start()}

    def _taught(self, state: JsonObject, change: JsonObject, told: Told) -> JsonObject:
        """The state once the search that proposed the change knows what came of it."""
        if _carries(change, self._mark(state)):
            return {**state, "search": self._search(state).tell(state["search"], change, told)}
        if change["kind"] == PATH and state["paths"] is not None:
            paths = self._begun(state, change["parents"][0])["paths"]
            if _carries(change, self._path_mark(paths)):
                return {**state, "paths": {**paths, "search": self._paths(paths).tell(paths["search"], change, told)}}
        return state

    def _worth_keeping(self, change: JsonObject, state: JsonObject, told: Told) -> bool:
        """Whether a model is built although it did not win: only an archive of merges has use for it."""
        if change["kind"] == PATH:
            return False
        state = self._in_shape(state)
        return self._search(state).keep(state["search"], told)

    def _mark(self, state: JsonObject) -> JsonObject:
        """What the points of the state's search for merges carry: those of another shape or epoch are none of its."""
        return {"shape": self._shape, "epoch": state["epoch"]}

    def _path_mark(self, paths: JsonObject) -> JsonObject:
        """The same of a search for paths: those of another shape or through other models are none of its."""
        return {"shape": self._path_shape, "pool": digest_of(paths["pool"])[:16]}

    @property
    def _shape(self) -> str:
        """What the points of a search for merges mean by the settings."""
        settings = self.settings
        measured = [[*settings.measures, settings.guard_items]] if settings.measures else []
        return digest_of([settings.search, settings.operators, settings.groups, settings.seed, *measured])[:16]

    @property
    def _path_shape(self) -> str:
        """What the points of a search for paths mean by the settings."""
        settings = self.settings
        return digest_of([
            PATH, settings.search is SearchKind.RANDOM, settings.path_repeats, settings.path_block,
            settings.path_growth, settings.path_flips, settings.path_sigma, settings.seed,
        ])[:16]

    def _patience(self, state: JsonObject) -> int:
        return self.settings.patience if state["paths"] is None else self.settings.path_patience

    def _in_shape(self, state: JsonObject) -> JsonObject:
        """The state, its search begun anew where the operator changed the settings since."""
        paths = state.get("paths")
        if self.settings.space is Space.PARAMETER:
            paths = None
        elif (paths or self.settings.space is Space.DATA_FLOW) and (paths or {}).get("shape") != self._path_shape:
            paths = self._first_paths()
        state = {**state, "paths": paths}
        if state.get("shape") == self._shape:
            return state
        return {**state, "shape": self._shape, "search": self._search(state).start()}

    def _first_paths(self) -> JsonObject:
        """A search for paths that will begin with the incumbent of the next proposal."""
        return {"shape": self._path_shape, "pool": [], "search": {}}

    def _begun(self, state: JsonObject, incumbent: str) -> JsonObject:
        """The state with its search for paths begun, where one is to begin: through the incumbent and the parents."""
        if state["paths"] is None or state["paths"]["pool"]:
            return state
        paths = {**state["paths"], "pool": list(dict.fromkeys([incumbent, *self.parents]))}
        return {**state, "paths": {**paths, "search": self._paths(paths).start()}}

    def _search(self, state: JsonObject) -> Search:
        """The search for merges that the state belongs to: the parents it has and the epoch it is in decide."""
        if self.settings.search is SearchKind.M2N2:
            return self._archive()
        return coarse_to_fine(self.settings, self.base, self.parents, tuple(state["trained"]), state["epoch"])

    def _paths(self, paths: JsonObject) -> CatCma:
        settings, pool = self.settings, tuple(paths["pool"])
        depths = tuple(map(self._deep, pool))
        deepest = max(settings.path_block, int(settings.path_growth * self._deep(self.base)))
        definition = PathDefinition(pool, depths, settings.path_repeats, settings.path_block, deepest)
        seed = seed_from("paths", settings.seed, *pool)
        return CatCma(definition, settings.path_flips, settings.path_sigma, seed, settings.search != SearchKind.RANDOM)

    def _deep(self, model: str) -> int:
        """How many layers a model has; 0 where nobody can tell, which is as good for models that are alike."""
        return 0 if self.depth is None else self.depth(model)

    def _archive(self) -> M2n2:
        settings = self.settings
        return M2n2(
            self.parents, settings.archive, seed_from("archive", settings.seed), settings.objectives,
            settings.separate_splits, settings.most_alike, settings.novelty,
        )

    def _screen(self, candidate: Candidate, bench: Bench) -> JsonObject:
        settings, more = self.settings, self._guarding(bench.seed("guards"))
        more |= {} if candidate.change["kind"] == PATH else self._measuring()
        digests = {*models_of(candidate.change), candidate.incumbent, *([more["base"]] if "base" in more else [])}
        inputs = {f"model:{digest}": digest for digest in sorted(digests)}
        params = {
            "change": _genome(candidate.change), "incumbent": candidate.incumbent, "tasks": list(self.tasks),
            "fitness_seed": candidate.change["search"]["items_seed"], "fitness_count": settings.fitness_items,
            "fresh_seed": bench.seed("fresh"), "fresh_count": settings.fresh_items,
            "race_batch": settings.batch_items, "batch": settings.score_batch, "level": settings.level,
        }
        return bench.job("screen", self._with_seal(inputs), {**params, **more}).values

    def _guarding(self, seed: int) -> JsonObject:
        """Parameters by which a job looks at what a winner loses on the guards; none where the settings ask for none.
        """
        if not self.settings.guard_items or not self.guards:
            return {}
        return {"guards": {
            "tasks": list(self.guards), "count": self.settings.guard_items, "margin": self.settings.guard_margin,
            "seed": seed,
        }}

    def _measuring(self) -> JsonObject:
        """Parameters by which a screening measures what an archive selects and mates by, against the base."""
        settings = self.settings
        measures = [*settings.measures, *(["sketch"] if settings.most_alike < 1 else [])]
        wanted = measures and settings.search is SearchKind.M2N2
        return {"measures": measures, "base": self.base} if wanted else {}

    def _won(self, values: JsonObject) -> bool:
        """Better than the incumbent, and not shown to be worse on any guard."""
        return self._is_better(values) and not lost_guards(values)

    def _is_better(self, values: JsonObject) -> bool:
        """Better by the race, or not stopped by it and better by the paired test on all fresh items."""
        decision = values["race"]["decision"]
        if decision is not None:
            return bool(decision == "better")
        return bool(values["comparison"]["p_value"] < self.settings.level)

    def _build(self, change: JsonObject, bench: Bench) -> str:
        """The built model's digest. One parent alone that is a model stands for itself and is not written again."""
        if change["kind"] == "crossover" and len(change["parents"]) == 1 and "base" not in change:
            return str(change["parents"][0])
        inputs = {f"model:{digest}": digest for digest in models_of(change)}
        return bench.job("build", inputs, {"change": _genome(change)}).outputs["model"]

    def _train(self, model: str, bench: Bench) -> str:
        """The best promoted result of the inner loop's child cycles on `model`, or `model` itself.

        A recipe that was carried out in full and promoted is built upon: what follows starts from its result.
        """
        best, tokens = model, self.settings.inner_tokens
        for _ in range(self.settings.inner_trials):
            if tokens <= 0 or bench.left.tokens <= 0 or bench.left.trials <= 0:
                break
            budget = Budget(self.settings.inner_seconds, tokens, self.settings.inner_child_trials)
            outcome = bench.descend(self.inner, model, best, budget)
            tokens -= outcome.cost.tokens
            if outcome.verdict is Verdict.TIMED_OUT:
                break                                   # what is left would be too little for the next one, too
            if outcome.verdict is Verdict.PROMOTED and outcome.result is not None:
                best = outcome.result
                model = best if outcome.evidence.get("complete") else model
        return best

    def _train_and_compare(self, candidate: Candidate, bench: Bench) -> Trial:
        best = self._train(candidate.base, bench)
        if best == candidate.base:
            return Trial(None, {"children": bench.children})
        inputs = self._with_seal({"model:new": best, "model:old": candidate.incumbent})
        params = {"tasks": list(self.tasks), "count": self.settings.fresh_items, "seed": bench.seed("compare"),
                  "batch": self.settings.score_batch, "level": self.settings.level}
        values = bench.job("compare", inputs, {**params, **self._guarding(bench.seed("guards"))}).values
        guards = {"guards": values["guards"]} if "guards" in values else {}
        return Trial(best, {
            "children": bench.children, "comparison": values["pooled"], "race": values["race"], **guards,
        })

    def _judge_training(self, trial: Trial) -> Outcome:
        evidence = trial.values
        if trial.result is None:
            reason = f"none of {evidence['children']} pipeline cycles was promoted"
            return Outcome(Verdict.REJECTED, reason, evidence=evidence)
        won = self._won(evidence)
        verdict = Verdict.PROMOTED if won else Verdict.REJECTED
        measured = _in_words(evidence["comparison"], 0.0, 0.0)
        reason = f"the trained model {self._against_the_incumbent(evidence)}: {measured}{_losses_in_words(evidence)}"
        return Outcome(verdict, reason, trial.result if won else None, evidence)

    def _against_the_incumbent(self, values: JsonObject) -> str:
        return f"{'beats' if self._is_better(values) else 'does not beat'} the incumbent"

    def _with_seal(self, inputs: Mapping[str, str]) -> dict[str, str]:
        return {**inputs, "seal": self.seal} if self.seal else dict(inputs)


def coarse_to_fine(
    settings: ArchitectureSettings, base: str, parents: tuple[str, ...], trained: tuple[str, ...] = (), epoch: int = 0
) -> CoarseToFine:
    """The search over merges of `parents` and `trained` over `base`.

    Where trained models made the parents more than an operator joins, it is left out: task arithmetic takes any number.
    """
    everyone = (*parents, *(model for model in trained if model not in parents))
    weights = tuple(
        settings.mean if not trained else
        settings.trained_weight if model == trained[-1] else settings.beside_weight for model in everyone
    )
    definitions = tuple(
        Definition(Operator(operator), base, everyone, seed=settings.seed) for operator in settings.operators
        if OPERATORS[Operator(operator)].fits(len(everyone))
    )
    if not any(definition.dimensions for definition in definitions):
        definitions = (*definitions, Definition(Operator.TASK_ARITHMETIC, base, everyone, seed=settings.seed))
    return CoarseToFine(
        RandomSearch if settings.search is SearchKind.RANDOM else CmaEs, definitions, weights, settings.sigma,
        settings.groups, settings.fine_sigma, settings.coarse_proposals, seed_from("epoch", settings.seed, epoch),
        settings.novelty,
    )


def lost_guards(values: JsonObject) -> list[str]:
    """The guards on which the candidate was shown to lose more than the margin."""
    return [task for task, found in values.get("guards", {}).items() if found["decision"] == WORSE]


def _lesson(values: JsonObject) -> JsonObject:
    """What the search learns from a screening."""
    lost = lost_guards(values)
    more: JsonObject = {name: values[name] for name in ("measures", "sketch") if name in values}
    return {
        "fitness": values["fitness"], "incumbent_fitness": values["incumbent_fitness"],
        "scores": values["fitness_scores"], "member": values.get("member"), "trained": values.get("trained", False),
        **more, **({"lost_guards": lost} if lost else {}),
    }


def _told(lesson: JsonObject, promoted: bool) -> Told:
    """What the search is told. Where a guard was lost it gets no fitness: no search may climb there."""
    if lesson.get("fitness") is None:
        return Told()
    rest = (lesson["scores"], lesson["member"], promoted, lesson.get("measures", {}), lesson.get("sketch", []))
    if lesson.get("lost_guards"):
        return Told(None, WORST, *rest)
    return Told(lesson["fitness"], lesson["fitness"] - lesson["incumbent_fitness"], *rest)


def _carries(change: JsonObject, mark: JsonObject) -> bool:
    """Whether a search with that mark proposed the change."""
    return bool(mark.items() <= change.get("search", {}).items())


def _genome(change: JsonObject) -> JsonObject:
    """The change without the search's own mark: what a model is built from."""
    return {key: value for key, value in change.items() if key != "search"}


def _in_words(comparison: JsonObject | None, fitness: float, incumbent: float) -> str:
    if not comparison or not comparison["n"]:
        return f"{fitness:.3f} against {incumbent:.3f} on the shared items"
    return f"{comparison['mean']:+.3f} on {comparison['n']} fresh items, p = {comparison['p_value']:.3g}"


def _losses_in_words(values: JsonObject) -> str:
    """What was lost on the guards, where it was too much."""
    lost = [f"{task} ({values['guards'][task]['mean']:+.3f} on {values['guards'][task]['n']} search items)"
            for task in lost_guards(values)]
    return f"; it loses more than is borne on {', '.join(lost)}" if lost else ""
