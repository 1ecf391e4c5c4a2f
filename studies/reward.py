"""What a learned shaping is worth: the reward loop on a task that is rarely solved, beside loops that shape otherwise.

Every arm begins with the same model and may sample the same number of completions, those of controls among them. Its
segments are the product's own jobs, and training goes on from them by the product's own rule. How good a model is says
q on the vault: how often sampling gives the right answer, exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from loops.loop import Bench, Trial
from loops.pipeline.recipe import Recipe, Stage
from loops.reward.loop import RewardLoop, RewardSettings, arm_of
from loops.reward.shaping import Shaping, annealed
from safety.yardstick.scoring import expected_success, load_model
from state.jobs import JobResult, JobSpec
from state.records import Budget, Candidate, Cycle, JsonObject, Outcome, canonical, digest_of, seed_from
from studies.findings import read_at_start
from studies.sorting import Sorting
from studies.world import Workshop, no_descent

SEGMENT_STEPS: Final = 24
RECIPE: Final = Recipe(Stage.GRPO, learning_rate=2e-4, batch=8, steps=384, group=8)
PLENTY: Final = Budget(1e9, 10**12, 10**6)
SOURCES: Final = (
    "daemon/worker.py", "loops/loop.py", "loops/pipeline/recipe.py", "loops/reward", "loops/work", "safety/yardstick",
    "state", "studies/reward.py", "studies/sorting.py", "studies/world.py",
)

Trace = list[tuple[int, float]]
"""Completions sampled so far and q on the vault, at the start and after each segment."""


@dataclass(frozen=True, slots=True)
class Given(RewardLoop):
    """A reward loop whose weights somebody chose beforehand. It has no control and no monitor."""

    weights: Mapping[str, float] = field(default_factory=dict)

    def shaping(self, state: JsonObject, step: int, horizon: int) -> Shaping:
        return Shaping(self.weights, annealed(self.settings.strength, step, horizon))

    def run(self, candidate: Candidate, bench: Bench) -> Trial:
        shaping = Shaping.from_json(candidate.change["shaping"])
        arm = arm_of(bench.jobs([self.spec(candidate.change, shaping, bench.left.tokens, None, bench)])[0])
        return Trial(arm["model"], {"arms": {"zero": arm}, "best_q": None, "history": [], "learned": None})


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One row: how it shapes ("learned", or the weights that it keeps to) and the weight of success replay."""

    name: str
    weights: Mapping[str, float] | None
    success_replay: float = RECIPE.success_replay

    def loop(self, world: Sorting) -> RewardLoop:
        given = ([world.task], world.seal, dict[str, str]())
        if self.weights is None:
            return RewardLoop(RewardSettings(), *given)
        return Given(RewardSettings(), *given, weights=self.weights)


@dataclass(slots=True)
class Bookkeeping(Workshop):
    """A workshop that does a job once, whichever arm asks for it first: the jobs of equal specs are equal to the bit.
    What an arm samples is counted by its trace, not here.
    """

    done: dict[str, JobResult] = field(default_factory=dict)

    def run(self, spec: JobSpec, *, timeout_seconds: float | None = None) -> JobResult:
        if spec.digest not in self.done:
            self.done[spec.digest] = Workshop.run(self, spec)
        return self.done[spec.digest]


def traced(arms: Sequence[Arm], world: Sorting, samples: int, folder: Path) -> dict[Arm, Trace]:
    """Each arm's trace up to that many completions, measured where it is not kept in `folder`."""
    found = {arm: _file(arm, world, samples, folder) for arm in arms}
    with TemporaryDirectory(prefix="kaizend-study-") as scratch:
        workshop = Bookkeeping(Path(scratch), dict(world.folders))
        for arm, file in found.items():
            if not file.is_file():
                recipe = replace(RECIPE, success_replay=arm.success_replay)
                start = (0, true_success(world, workshop.folders[world.model]))
                walked = walk(arm.loop(world), recipe, world, samples, workshop)
                trace = [start, *((step.samples, step.q) for step in walked)]
                kept = {"arm": arm.name, "success_replay": arm.success_replay, "trace": trace}
                file.parent.mkdir(parents=True, exist_ok=True)
                partial = file.with_suffix(".partial")
                partial.write_text(canonical(kept))
                partial.rename(file)
    traces = {arm: json.loads(file.read_text())["trace"] for arm, file in found.items()}
    return {arm: [(int(count), float(q)) for count, q in trace] for arm, trace in traces.items()}


def _file(arm: Arm, world: Sorting, samples: int, folder: Path) -> Path:
    weights = None if arm.weights is None else dict(arm.weights)
    key = [weights, arm.success_replay, world.seed, world.model, samples, read_at_start(SOURCES)]
    return folder / "findings" / f"reward-{world.seed}-{world.level:g}-{digest_of(key)[:16]}.json"


@dataclass(frozen=True, slots=True)
class Step:
    """Where a loop stands after a segment: completions sampled so far, q on the vault, and how the segment ended."""

    samples: int
    q: float
    trial: Trial
    outcome: Outcome


def walk(loop: RewardLoop, recipe: Recipe, world: Sorting, samples: int, workshop: Workshop) -> Iterator[Step]:
    """One segment after the other, each from the last sound one as the product has it, until `samples` are used up."""
    state, model, checkpoint, trained, spent, segment = loop.start(), world.model, None, 0, 0, 0
    while spent < samples:
        here = loop.on({
            "recipe": recipe.to_json(), "checkpoint": checkpoint, "from_step": trained, "steps": SEGMENT_STEPS,
            "segment": segment, "lineage": "study",
        })
        own_seed = seed_from("study", world.seed, segment)
        candidate = here.propose(state, model, model, own_seed)
        cycle = Cycle(segment, here.name, None, segment, candidate, state, PLENTY)
        bench = Bench(cycle, workshop, "study", no_descent, PLENTY.seconds, own_seed)
        trial = here.run(candidate, bench)
        outcome = here.judge(candidate, trial)
        state = here.learn(state, candidate, outcome)
        spent += recipe.completions * sum(len(each["values"]["truth"]) for each in trial.values["arms"].values())
        if outcome.lesson["sound"]:
            model, checkpoint = outcome.lesson["model"], outcome.lesson["checkpoint"]
            trained += outcome.lesson["steps"]
        segment += 1
        yield Step(spent, true_success(world, workshop.folders[model]), trial, outcome)


def true_success(world: Sorting, folder: Path) -> float:
    """q of a model on the vault."""
    scored = load_model(folder, "cpu")
    return float(expected_success(scored.model, scored.tokenizer, world.vault).mean())


def after(trace: Trace, samples: int) -> float:
    """q after so many completions, on the line between what was measured."""
    (before, low), (beyond, high) = _around(trace, lambda count, _: count >= samples)
    return low + (high - low) * (samples - before) / (beyond - before) if beyond > before else high


def samples_to(trace: Trace, q: float) -> float | None:
    """How many completions it took to get to q, on the line between what was measured; None where it did not."""
    if all(reached < q for _, reached in trace):
        return None
    (before, low), (beyond, high) = _around(trace, lambda _, reached: reached >= q)
    return before + (beyond - before) * (q - low) / (high - low) if high > low else float(beyond)


def _around(trace: Trace, beyond: Callable[[int, float], bool]) -> tuple[tuple[int, float], tuple[int, float]]:
    place = next((place for place, point in enumerate(trace) if beyond(*point)), len(trace) - 1)
    return trace[max(0, place - 1)], trace[place]
