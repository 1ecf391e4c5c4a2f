"""The pipeline loop: one cycle runs one rung of one recipe and compares what came out with the incumbent.

Which recipe and which rung follow from the state (`tuner`), how a rung is run from its stage (`rung`).
Every base model has a study of its own; what was learned about sources, recipes and limits carries over.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from loops.loop import Bench, Trial
from loops.pipeline import limits, memory, mixture, seen, weighing
from loops.pipeline.mutation import child
from loops.pipeline.recipe import OWN, Recipe
from loops.pipeline.rung import Rungs, SegmentLoop
from loops.pipeline.settings import PipelineSettings
from loops.pipeline.space import Space
from loops.pipeline.tuner import Configuration, Knowledge, fresh, paused, survivor, trimmed
from state.jobs import JobFailed
from state.records import Candidate, JsonObject, LoopName, Outcome, Verdict

STUDIES_KEPT: Final = 2
BEST_KEPT: Final = 3
MOST_TIMEOUTS: Final = 3
MOST_VALUES: Final = 16


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
        named = self.settings.defaults[chosen.recipe.stage].mixture
        if weighing.due(chosen, configurations, {name: named.get(name, 0.0) for name in self.sources}):
            change |= {"weigh": True, "payoffs": state["payoffs"]}
        if chosen.parent is not None:
            change |= {"parent": chosen.parent, "history": list(chosen.values), "inherited": chosen.inherited}
        return Candidate(self.name, change, model, incumbent)

    def run(self, candidate: Candidate, bench: Bench) -> Trial:
        if bench.left.tokens <= 0:
            raise JobFailed("the budget has no tokens left to train on", Verdict.TIMED_OUT)
        rungs = Rungs(self.settings, self.targets, self.seal, self.sources, self.inner, self.preferences)
        values = rungs.run(candidate.change, bench)
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
