"""How one rung of a recipe is run, by its stage.

A supervised or a preference rung is one job, the latter after one more by which the base makes pairs of its own
answers; reinforcement goes in segments, each a child cycle of the inner loop, which decides how that segment is
rewarded and whether it is accepted. Which recipe runs and what follows from it is the loop's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from loops.loop import Bench, Loop
from loops.pipeline import mixture, seen
from loops.pipeline.recipe import OWN, Recipe, Stage
from loops.pipeline.settings import PipelineSettings
from loops.pipeline.weighing import weighed
from state.jobs import JobFailed, JobResult
from state.records import Budget, JsonObject, Verdict, seed_from

FEWEST_PAIRS: Final = 8
"""With fewer, a model has too little to learn from in its own answers."""


class SegmentLoop(Loop, Protocol):
    """The inner loop: told which segment to run, it is a loop whose next cycle runs it."""

    def on(self, assignment: JsonObject) -> Loop:
        """`assignment`: {"recipe", "checkpoint", "from_step", "steps", "segment", "lineage"}, and "sources" where the
        recipe selects from them.
        """
        ...


@dataclass(frozen=True, slots=True)
class Rungs:
    """Runs a rung as a pipeline candidate's change says; what it holds is the loop's."""

    settings: PipelineSettings
    targets: Sequence[JsonObject]
    seal: str
    sources: Mapping[str, str]
    inner: SegmentLoop
    preferences: Mapping[str, str]

    def run(self, change: JsonObject, bench: Bench) -> JsonObject:
        """The rung's values: the model and where it stands, and by source what it was trained on ("data").

        Raises JobFailed where nothing was trained.
        """
        sources, selected = self._selected(change, bench)
        ways = {Stage.SFT: self._train, Stage.DPO: self._prefer, Stage.GRPO: self._reinforce}
        values = ways[Stage(change["recipe"]["stage"])](change, bench, sources)
        known = {**self.preferences, **sources, OWN: values.get("pairs")}
        return {**values, "data": seen.told(values["sources"], known, selected)}

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

    def _train(self, change: JsonObject, bench: Bench, sources: Mapping[str, str]) -> JsonObject:
        """A supervised rung: one job, and before the first one of a base another that weighs the sources, by which this
        recipe's mixture goes already.
        """
        found = weighed(change, bench, sources, self.targets, self.seal) if change.get("weigh") else {}
        recipe = Recipe.from_json(change["recipe"])
        if found:
            payoffs = mixture.learned(change.get("payoffs", {}), found)
            mixed = self.settings.space.recipe(recipe.stage, change["genes"], list(self.sources), payoffs).mixture
            change = {**change, "recipe": recipe.with_mixture(mixed).to_json()}
        values = self._course("train", {}, sources, change, bench)
        return {**values, "weighed": found, "mixture": change["recipe"]["mixture"]}

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
