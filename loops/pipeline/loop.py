"""The pipeline loop: one cycle runs one rung of one recipe and compares what came out with the incumbent.

Which recipe and which rung follow from the state (`tuner`). A supervised or a preference rung is one job, the latter
after one more by which the base makes pairs of its own answers; reinforcement goes in segments, each a child cycle of
the inner loop, which decides how that segment is rewarded and whether it is accepted.
Every base model has a study of its own; what was learned about sources, recipes and limits carries over.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from loops.loop import Bench, Loop, Trial
from loops.pipeline import limits, memory, mixture, seen
from loops.pipeline.mutation import child
from loops.pipeline.recipe import DPO, GRPO, OWN, SFT, Recipe, Stage
from loops.pipeline.space import RANGES, Ranges, Space
from loops.pipeline.tuner import Configuration, Knowledge, Ladder, Sampler, fresh, paused, survivor, trimmed
from state.jobs import JobFailed, JobResult
from state.records import Budget, Candidate, JsonObject, LoopName, Outcome, Verdict, seed_from

STUDIES_KEPT: Final = 2
BEST_KEPT: Final = 3
MOST_TIMEOUTS: Final = 3
MOST_VALUES: Final = 16
FEWEST_PAIRS: Final = 8
"""With fewer, a model has too little to learn from in its own answers."""
WEIGH_ITEMS: Final = 512
WEIGH_STEPS: Final = 8
WEIGH_PART: Final = 5
"""Weighing the sources takes at most one part in so many of a recipe's full steps, and at least one step a source."""


class SegmentLoop(Loop, Protocol):
    """The inner loop: told which segment to run, it is a loop whose next cycle runs it."""

    def on(self, assignment: JsonObject) -> Loop:
        """`assignment`: {"recipe", "checkpoint", "from_step", "steps", "segment", "lineage"}, and "sources" where the
        recipe selects from them.
        """
        ...


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """What the operator chooses.

    `stages` are tried in this order: on a model that one of them made the next one goes first. `sft`, `dpo` and `grpo`
    are the recipes that the stages start from, `ranges` how far the tuner may leave them; `eta` and `rungs` make the
    ladder (the last rung is a recipe's full steps); `children` is how many of the eta - 1 places that a climbing
    configuration leaves behind go to children of it; `sampler` draws new recipes; `segment_steps` is the length of a
    reinforcement segment; dpo answers `pair_prompts` fresh search items `pair_samples` times each to make pairs (0:
    only the operator's preferences are learned from); `fresh_items` search items a task decide a comparison at the
    one-sided `level`;
    `save_steps` is how often a training job saves itself.
    """

    stages: tuple[Stage, ...] = (Stage.SFT, Stage.GRPO)
    sft: Recipe = SFT
    dpo: Recipe = DPO
    grpo: Recipe = GRPO
    ranges: Ranges = RANGES
    eta: int = 3
    rungs: int = 3
    children: int = 0
    sampler: Sampler = Sampler.TPE
    segment_steps: int = 24
    pair_prompts: int = 128
    pair_samples: int = 8
    fresh_items: int = 512
    level: float = 0.05
    save_steps: int = 50

    def __post_init__(self) -> None:
        for stage, recipe in self.defaults.items():
            if recipe.stage is not stage:
                raise ValueError(f'the recipe {stage} has stage = "{stage}"')
        if not self.stages or self.segment_steps < 1 or self.fresh_items < 1:
            raise ValueError("stages, segment_steps and fresh_items must not be empty or 0")
        if self.pair_prompts < 0 or self.pair_samples < 2:
            raise ValueError("pair_prompts must be at least 0 and pair_samples at least 2")
        if not 0 < self.level < 1:
            raise ValueError("level must be between 0 and 1")
        Ladder(self.eta, self.rungs)
        if not 0 <= self.children < self.eta:
            raise ValueError(f"children must be between 0 and {self.eta - 1}, one less than eta")
        self.space.check()

    @property
    def ladder(self) -> Ladder:
        return Ladder(self.eta, self.rungs)

    @property
    def defaults(self) -> dict[Stage, Recipe]:
        return {Stage.SFT: self.sft, Stage.DPO: self.dpo, Stage.GRPO: self.grpo}

    @property
    def space(self) -> Space:
        return Space(self.stages, self.defaults, self.ranges)


@dataclass(frozen=True, slots=True)
class PipelineLoop:
    """Satisfies `loops.loop.Loop`.

    `targets` are task specs as JSON, `seal` the digest of the sealed item ids, `sources` the training data (name ->
    digest), `inner` the loop that runs reinforcement segments, `preferences` the training data of dpo; `ancestors`
    tells a model's lineage, by which studies of earlier models count.
    """

    settings: PipelineSettings
    targets: Sequence[JsonObject]
    seal: str
    sources: Mapping[str, str]
    inner: SegmentLoop
    preferences: Mapping[str, str] = field(default_factory=dict)
    ancestors: memory.Ancestors = lambda digest: (digest,)

    @property
    def name(self) -> LoopName:
        return LoopName.PIPELINE

    def start(self) -> JsonObject:
        return {"studies": [], "memories": [], "payoffs": {}, "best": {}, "limits": []}

    def propose(
        self, state: JsonObject, base: str, incumbent: str, seed: int, in_flight: Sequence[Candidate] = ()
    ) -> Candidate:
        configurations, ladder = _configurations(_study(state, base)), self.settings.ladder
        out = {change["config"]: change for change in (candidate.change for candidate in in_flight)
               if change.get("study") == base}
        known = {configuration.id for configuration in configurations}
        configurations += [_begun(change) for name, change in out.items() if name not in known]
        chosen = paused(configurations, ladder, out.keys()) or self._climbing(state, base, configurations, seed, out)
        if chosen is None:
            chosen = fresh(
                configurations, self._space(state, base), self._names, self._knowledge(state, base), seed,
                self.settings.sampler,
            )
        model = chosen.model or base
        change = {
            "recipe": chosen.recipe.to_json(), "genes": dict(chosen.genes), "config": chosen.id, "study": base,
            "rung": len(chosen.values), "from_step": chosen.step, "to_step": ladder.aim(chosen),
            "rung_end": ladder.end(chosen),
            "trained": chosen.trained, "checkpoint": chosen.checkpoint, "model": model,
        }
        if chosen.pairs is not None:
            change["pairs"] = chosen.pairs
        if chosen.seen:
            change["seen"] = chosen.seen
        if chosen.asked:
            change["asked"] = chosen.asked
        if self._is_weighed(chosen, configurations):
            change |= {"weigh": True, "payoffs": state["payoffs"]}
        if chosen.parent is not None:
            change |= {"parent": chosen.parent, "history": list(chosen.values), "inherited": chosen.inherited}
        return Candidate(self.name, change, model, incumbent)

    def run(self, candidate: Candidate, bench: Bench) -> Trial:
        if bench.left.tokens <= 0:
            raise JobFailed("the budget has no tokens left to train on", Verdict.TIMED_OUT)
        change = candidate.change
        sources, selected = self._selected(change, bench)
        ways = {Stage.SFT: self._train, Stage.DPO: self._prefer, Stage.GRPO: self._reinforce}
        values = ways[Stage(change["recipe"]["stage"])](change, bench, sources)
        known = {**self.preferences, **sources, OWN: values.get("pairs")}
        values["data"] = seen.told(values["sources"], known, selected)
        made = values["model"] != candidate.change["model"]
        if values["model"] == candidate.incumbent or "hopeless" in values:
            return Trial(None, {**values, "comparison": None})
        inputs = {"model:new": values["model"], "model:old": candidate.incumbent, "seal": self.seal}
        params = {
            "tasks": list(self.targets), "count": self.settings.fresh_items, "seed": bench.seed("fresh"), "race": False,
        }
        compared = bench.job("compare", inputs, params).values
        return Trial(values["model"] if made else None, {**values, "comparison": compared["pooled"]})

    def judge(self, candidate: Candidate, trial: Trial) -> Outcome:
        """PROMOTED by a one-sided paired test on fresh search items against the incumbent."""
        values, comparison = trial.values, trial.values["comparison"]
        recipe, rung = candidate.change["recipe"], candidate.change["rung"]
        evidence = {
            "stage": recipe["stage"], "rung": rung, "from_step": candidate.change["from_step"],
            "reached": values["reached"], "complete": values["reached"] >= recipe["steps"],
            "comparison": comparison, "training": values["training"],
        }
        if values["data"] or "prompts" in values:
            evidence["data"] = values["data"]
        evidence |= {key: values[key] for key in ("tasks", "prompts", "asked") if key in values}
        lesson = {key: values[key] for key in ("model", "checkpoint", "reached", "trained", "sources")}
        lesson |= {key: values[key] for key in ("pairs", "hopeless") if key in values}
        lesson |= {"weighed": values.get("weighed", {}), "data": values["data"], "asked": values.get("asked", {})}
        if lesson["weighed"]:
            lesson["mixture"] = values["mixture"]
            evidence |= {key: lesson[key] for key in ("weighed", "mixture")}
        told = f"{recipe['stage']} to step {values['reached']} of {recipe['steps']}"
        if comparison is None:
            why = values.get("hopeless", "nothing new came out")
            return Outcome(Verdict.REJECTED, f"{told}: {why}", None, evidence, lesson)
        numbers = f"{comparison['mean']:+.4f} on {comparison['n']} items, p {comparison['p_value']:.3g}"
        better = trial.result is not None and comparison["mean"] > 0 and comparison["p_value"] < self.settings.level
        verdict = Verdict.PROMOTED if better else Verdict.REJECTED
        return Outcome(verdict, f"{told}: {numbers}", trial.result if better else None, evidence, lesson)

    def learn(self, state: JsonObject, candidate: Candidate, outcome: Outcome) -> JsonObject:
        change, lesson = candidate.change, outcome.lesson
        study = _study(state, change["study"])
        configurations = _configurations(study)
        found = next((c for c in configurations if c.id == change["config"]), None)
        before = found or _begun(change)
        comparison = outcome.evidence.get("comparison")
        values = dict(study["values"])                     # kept as pairs: JSON objects forget which came last
        offset = values.get(candidate.incumbent, 0.0)
        value = offset + (comparison["mean"] if comparison else 0.0)
        after = _walked(before, change, outcome, value)
        kept = [after if c.id == after.id else c for c in configurations] + ([] if found else [after])
        best = dict(state["best"])
        if outcome.verdict is Verdict.PROMOTED and outcome.result is not None:
            values = {**{model: known for model, known in values.items() if model != outcome.result},
                      outcome.result: value}
            best[str(after.recipe.stage)] = _ranked(best.get(str(after.recipe.stage), []), after, value - offset)
        study = {
            "base": change["study"], "values": [[model, known] for model, known in values.items()][-MOST_VALUES:],
            "configurations": [c.to_json() for c in trimmed(kept, self.settings.ladder)],
        }
        studies = [*(s for s in state["studies"] if s["base"] != study["base"]), study]
        memories = state.get("memories", [])
        for old in studies[:-STUDIES_KEPT]:
            memories = memory.added(memories, memory.remembered(old["base"], _configurations(old)))
        limit = limits.taught(after.recipe, outcome.reason) if outcome.verdict is Verdict.CRASHED else None
        return {
            "studies": studies[-STUDIES_KEPT:], "memories": memories,
            "payoffs": mixture.learned(state["payoffs"], lesson.get("weighed") or {}),
            "best": best, "limits": limits.added(state["limits"], limit),
        }

    def _climbing(
        self, state: JsonObject, base: str, configurations: Sequence[Configuration], seed: int, out: Container[str]
    ) -> Configuration | None:
        """What goes on from the end of a rung: a child of the configuration that climbs, while it may have one more,
        then that configuration itself.
        """
        leader = survivor(configurations, self.settings.ladder, out)
        if leader is None:
            return None
        born = [c for c in configurations if c.parent == leader.id and c.inherited == len(leader.values)]
        if len(born) >= self.settings.children:
            return leader
        knowledge = Knowledge(state["payoffs"], {}, state["limits"])
        return child(leader, configurations, self._space(state, base), self._names, knowledge, seed) or leader

    def _knowledge(self, state: JsonObject, base: str) -> Knowledge:
        best = {stage: [entry["genes"] for entry in entries] for stage, entries in state["best"].items()}
        memories = state.get("memories", [])
        for study in state["studies"]:
            memories = memory.added(memories, memory.remembered(study["base"], _configurations(study)))
        return Knowledge(state["payoffs"], best, state["limits"], memory.hints(base, memories, self.ancestors))

    @property
    def _names(self) -> list[str]:
        """Every source that some stage may train on."""
        return sorted({*self.sources, *self._preferred})

    @property
    def _preferred(self) -> frozenset[str]:
        """The sources of preferences, the model's own pairs among them."""
        return frozenset([*self.preferences, *([OWN] if self.settings.pair_prompts else [])])

    def _space(self, state: JsonObject, base: str) -> Space:
        """The space of recipes. The stage that comes after the one that made the base goes first; one that is hopeless
        on the base is left out, unless there is no other.
        """
        stages = list(self.settings.stages)
        made = [c.recipe.stage for study in state["studies"] for c in _configurations(study) if c.model == base]
        after = max((place + 1 for place, stage in enumerate(stages) if stage in made), default=0)
        hopeless = {c.recipe.stage for c in _configurations(_study(state, base)) if c.hopeless}
        order = [*stages[after:], *stages[:after]]
        chosen = [stage for stage in order if stage not in hopeless] or order
        return replace(self.settings.space, stages=tuple(chosen), preferences=self._preferred)

    def _is_weighed(self, chosen: Configuration, configurations: Sequence[Configuration]) -> bool:
        """Whether the cycle weighs the sources first: supervised training does, once for every base model, where the
        operator leaves the mixture to what they pay.
        """
        named = self.settings.space.defaults[chosen.recipe.stage].mixture
        mine = any(named.get(name, 0.0) for name in self.sources)
        begun = any(c.recipe.stage is chosen.recipe.stage and c.step for c in configurations)
        return chosen.recipe.stage is Stage.SFT and len(self.sources) > 1 and not mine and not begun

    def _selected(self, change: JsonObject, bench: Bench) -> tuple[dict[str, str], JsonObject]:
        """What the recipe's selection leaves of the sources (name -> digest), and of each how much it dropped and why.

        All sources are selected from, whatever the mixture, so that recipes that select alike share one job. Raises
        JobFailed where nothing is left of what the recipe trains on.
        """
        recipe = Recipe.from_json(change["recipe"])
        if recipe.stage is Stage.DPO or recipe.selection.is_whole or not self.sources:
            return dict(self.sources), {}
        inputs = {f"data:{name}": digest for name, digest in sorted(self.sources.items())}
        if recipe.selection.asks_model:
            inputs["model"] = change["study"]
        result = bench.job("select", inputs, {"selection": recipe.selection.to_json()})
        left = {name: result.outputs[f"data:{name}"] for name in self.sources if f"data:{name}" in result.outputs}
        if not left.keys() & recipe.shares(self.sources).keys():
            raise JobFailed("the recipe's selection leaves no row of the data that it trains on", Verdict.REFUSED)
        return left, result.values["sources"]

    def _weighed(self, change: JsonObject, bench: Bench, sources: Mapping[str, str]) -> JsonObject:
        """{source: what it alone did to the target}; empty where that is not asked for or nothing fits the tokens."""
        if not change.get("weigh"):
            return {}
        most = change["recipe"]["steps"] // (WEIGH_PART * len(sources))
        inputs = {"model": change["model"], "seal": self.seal}
        inputs |= {f"data:{name}": digest for name, digest in sorted(sources.items())}
        params = {
            "recipe": change["recipe"], "tasks": list(self.targets), "steps": max(1, min(WEIGH_STEPS, most)),
            "items": WEIGH_ITEMS, "max_tokens": bench.left.tokens // WEIGH_PART,
        }
        found: JsonObject = bench.job("weigh", inputs, params, bench.seed("weigh")).values["weighed"]
        return found

    def _train(self, change: JsonObject, bench: Bench, sources: Mapping[str, str]) -> JsonObject:
        """A supervised rung: one job, and before the first one of a base another that weighs the sources, by which this
        recipe's mixture goes already.
        """
        weighed = self._weighed(change, bench, sources)
        recipe = Recipe.from_json(change["recipe"])
        if weighed:
            payoffs = mixture.learned(change.get("payoffs", {}), weighed)
            mixed = self.settings.space.recipe(recipe.stage, change["genes"], list(self.sources), payoffs).mixture
            change = {**change, "recipe": recipe.with_mixture(mixed).to_json()}
        values = self._course("train", {}, sources, change, bench)
        return {**values, "weighed": weighed, "mixture": change["recipe"]["mixture"]}

    def _prefer(self, change: JsonObject, bench: Bench, _: Mapping[str, str]) -> JsonObject:
        """A rung of preferences: one job, which holds on to the base of the study. The pairs that the base makes of its
        own answers are the configuration's, and its first rung pays for them. Where there are too few and the operator
        gave none, the stage is hopeless on this base.
        """
        pairs, told, sources = change.get("pairs"), {}, dict(self.preferences)
        if self.settings.pair_prompts and pairs is None:
            made = self._pairs(change, bench)
            told = {"pairs": made.values}
            enough = made.values["pairs"] >= FEWEST_PAIRS
            if made.values["stopped"] and not enough:
                raise JobFailed(f"too few pairs were made: {made.values['stopped']}", Verdict.TIMED_OUT)
            pairs = made.outputs["pairs"] if enough else ""
        if pairs:
            sources[OWN] = pairs
        if not sources:
            count = f"{told['pairs']['pairs']} of the {FEWEST_PAIRS} pairs it needs" if told else "no preferences"
            return {
                "model": change["model"], "checkpoint": change["checkpoint"], "reached": change["from_step"],
                "trained": change["trained"], "sources": {}, "training": told,
                "hopeless": f"there are {count} to learn from",
            }
        values = self._course("prefer", {"reference": change["study"]}, sources, change, bench)
        return {**values, "pairs": pairs, "training": {**values["training"], **told}}

    def _pairs(self, change: JsonObject, bench: Bench) -> JobResult:
        """Pairs of a right and a wrong answer of the study's base to a fresh search item, for at most half the tokens.
        """
        params = {
            "tasks": list(self.targets), "prompts": self.settings.pair_prompts, "samples": self.settings.pair_samples,
            "temperature": change["recipe"]["temperature"], "max_tokens": bench.left.tokens // 2,
        }
        seed = seed_from("pairs", change["study"], change["config"])
        return bench.job("pairs", {"model": change["study"], "seal": self.seal}, params, seed)

    def _course(
        self, kind: str, more: Mapping[str, str], sources: Mapping[str, str], change: JsonObject, bench: Bench
    ) -> JsonObject:
        """A rung that is one job on the sources, which ends early where the tokens do not suffice."""
        inputs = {"model": change["model"], **more}
        if change["checkpoint"] is not None:
            inputs["checkpoint"] = change["checkpoint"]
        used = Recipe.from_json(change["recipe"]).shares(sources)
        inputs |= {f"data:{name}": sources[name] for name in used}
        params = {
            "recipe": change["recipe"], "from_step": change["from_step"], "to_step": change["to_step"],
            "save_steps": self.settings.save_steps, "max_tokens": bench.left.tokens,
        }
        result = bench.job(kind, inputs, params, bench.seed("train"))
        values = result.values
        if not result.outputs:
            raise JobFailed(f"nothing was trained: {values['stopped']}", Verdict.TIMED_OUT)
        reached = change["from_step"] + values["steps"]
        shown = ("steps", "tokens", "loss_first", "loss_last", "stopped", "learned")
        return {
            "model": result.outputs["model"], "checkpoint": result.outputs["checkpoint"], "reached": reached,
            "trained": reached, "sources": values.get("sources", {}),
            "training": {key: values.get(key) for key in shown},
        }

    def _reinforce(self, change: JsonObject, bench: Bench, sources: Mapping[str, str]) -> JsonObject:
        """A reinforcement rung: child cycles, each from the last sound checkpoint; what is not sound is spent.

        Where a budget ends one of them the rung is put aside: the steps that it did not do are not spent.
        """
        if bench.left.trials < 1:
            raise JobFailed("the budget has no trial left for a reinforcement segment", Verdict.TIMED_OUT)
        model, checkpoint, trained = change["model"], change["checkpoint"], change["trained"]
        reached, to_step, verdicts, last = change["from_step"], change["to_step"], [], None
        replayed: JsonObject = {}
        asked: JsonObject = {}
        prompts = 0
        while reached < to_step and bench.left.trials > 0 and bench.left.tokens > 0:
            steps = min(self.settings.segment_steps, to_step - reached)
            segment = self.inner.on({
                **({"sources": dict(sources)} if dict(sources) != dict(self.sources) else {}),
                "recipe": change["recipe"], "checkpoint": checkpoint, "from_step": trained, "steps": steps,
                "segment": reached // self.settings.segment_steps, "lineage": change["config"],
            })
            left = bench.left
            last = bench.descend(segment, model, model, Budget(left.seconds, left.tokens, 0))
            verdicts.append(str(last.verdict))
            if last.verdict is Verdict.TIMED_OUT:
                break
            cut = last.lesson.get("cut", 0)
            reached += steps - cut
            if last.lesson.get("sound"):
                model, checkpoint = last.lesson["model"], last.lesson["checkpoint"]
                trained += last.lesson["steps"]                     # fewer than asked for where it stopped early
                replayed = seen.added(replayed, last.evidence.get("data") or {})
                prompts += last.evidence.get("prompts") or 0
                asked = seen.asked_too(asked, last.evidence.get("asked") or {})
            if cut:
                break
        failed = {Verdict.CRASHED, Verdict.TIMED_OUT, Verdict.REFUSED}
        if last is None or all(verdict in failed for verdict in verdicts):
            raise JobFailed(
                f"no segment was finished: {last.reason}" if last else "the budget is used up",
                Verdict.CRASHED if last and last.verdict is not Verdict.TIMED_OUT else Verdict.TIMED_OUT,
            )
        return {
            "model": model, "checkpoint": checkpoint, "reached": reached, "trained": trained, "sources": replayed,
            "tasks": [task["name"] for task in self.targets], "prompts": prompts, "asked": asked,
            "training": {"segments": verdicts},
        }


def _study(state: JsonObject, base: str) -> JsonObject:
    """The study of one base model; its own objective is 0 and everything in it is measured from there."""
    found: JsonObject | None = next((s for s in state["studies"] if s["base"] == base), None)
    return found or {"base": base, "configurations": [], "values": [[base, 0.0]]}


def _configurations(study: JsonObject) -> list[Configuration]:
    return [Configuration.from_json(body) for body in study["configurations"]]


def _begun(change: JsonObject) -> Configuration:
    """The configuration of a candidate of which nothing is known yet but, of a child, where it took over."""
    begun = Configuration(change["config"], Recipe.from_json(change["recipe"]), change["genes"])
    if "parent" not in change:
        return begun
    return replace(
        begun, step=change["from_step"], trained=change["trained"], model=change["model"],
        checkpoint=change["checkpoint"], values=tuple(change["history"]), parent=change["parent"],
        inherited=change["inherited"], pairs=change.get("pairs"), seen=change.get("seen", {}),
        asked=change.get("asked", {}),
    )


def _walked(before: Configuration, change: JsonObject, outcome: Outcome, value: float) -> Configuration:
    """The configuration after its cycle: further, put aside by a budget, or failed."""
    lesson = outcome.lesson
    if "hopeless" in lesson:
        return replace(before, hopeless=True, failed=f"{outcome.verdict}: {outcome.reason}"[:200])
    if outcome.verdict in (Verdict.PROMOTED, Verdict.REJECTED):
        through = lesson["reached"] >= change.get("rung_end", change["to_step"])
        recipe = before.recipe.with_mixture(lesson["mixture"]) if "mixture" in lesson else before.recipe
        return replace(
            before, recipe=recipe, step=lesson["reached"], trained=lesson["trained"], model=lesson["model"],
            checkpoint=lesson["checkpoint"], values=(*before.values, value) if through else before.values,
            timeouts=0 if through else before.timeouts, pairs=lesson.get("pairs"),
            seen=seen.added(before.seen, lesson.get("data") or {}),
            asked=seen.asked_too(before.asked, lesson.get("asked") or {}),
        )
    if outcome.verdict is Verdict.TIMED_OUT and before.timeouts + 1 < MOST_TIMEOUTS:
        return replace(before, timeouts=before.timeouts + 1)
    return replace(before, failed=f"{outcome.verdict}: {outcome.reason}"[:200])


def _ranked(entries: Sequence[JsonObject], configuration: Configuration, gain: float) -> list[JsonObject]:
    """The recipes of one stage that gained most over their incumbent, each once."""
    genes = dict(configuration.genes)
    others = [entry for entry in entries if entry["genes"] != genes]
    return sorted([*others, {"genes": genes, "gain": gain}], key=lambda entry: -entry["gain"])[:BEST_KEPT]
