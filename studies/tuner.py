"""The pipeline's tuner beside Optuna with ASHA by restart and beside random search, at equal training tokens.

Every arm begins with the same base model and the operator's same poor default, may train on the same number of tokens
by the real jobs and gives one model at any time: the one that it would use. Two traps are set. The upper third of the
learning rates ruins the model, and one of three data sources has its answers shuffled.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Protocol

from loops.cycle import guarded
from loops.loop import Bench
from loops.pipeline.loop import PipelineLoop, PipelineSettings
from loops.pipeline.recipe import Adapter, Recipe, Schedule, Stage
from loops.pipeline.space import Ranges
from loops.pipeline.tuner import Configuration, Knowledge, Ladder, Sampler, fresh, survivor
from safety.yardstick import bilingual
from safety.yardstick.items import TaskSpec
from state.code import digests_of
from state.files import manifest_of
from state.jobs import JobFailed, JobSpec
from state.records import Budget, Candidate, Cycle, JsonObject, Outcome, Verdict, canonical, digest_of, seed_from
from studies.paired import share
from studies.world import NOBODY, ROOT, Workshop, World, answers, no_descent

STEPS: Final = 81
BATCH: Final = 32
LEARNING_RATE: Final = 1.5e-4
FASTEST: Final = 600.0
"""The top of the span of learning rates, as a factor on the default: what is above a tenth of it ruins the model."""
ITEMS: Final = 512
SPOILED_ROWS: Final = 6_000
SOURCES: Final = ("language", "maths", "spoiled")
EVEN: Final = dict.fromkeys(SOURCES, 1.0)
NOTHING: Final = Knowledge({}, {}, [])

SOURCES_OF_PROGRAM: Final = (
    "daemon/demo.py", "daemon/worker.py", "loops/cycle.py", "loops/loop.py", "loops/pipeline", "loops/work", "safety",
    "state", "studies/tuner.py", "studies/world.py",
)
"""What a course comes from."""

DEFAULT: Final = Recipe(
    Stage.SFT, learning_rate=LEARNING_RATE, batch=BATCH, steps=STEPS, schedule=Schedule.LINEAR, adapter=Adapter(),
)
RANGES: Final = Ranges(learning_rate=(1.0, FASTEST), batch=(1.0,))


@dataclass(frozen=True, slots=True)
class Moment:
    """From so many tokens on this was the model that an arm would have used; `trials` is how many it had run."""

    tokens: int
    model: str
    trials: int


@dataclass(frozen=True, slots=True)
class Field:
    """What the arms of one seed work on: the base, data sources by digest, a seal that seals nothing, the target."""

    world: World
    sources: Mapping[str, str]
    seal: str
    task: TaskSpec


class Arm(Protocol):
    def __call__(self, field: Field, workshop: Workshop, tokens: int) -> list[Moment]: ...


@dataclass(frozen=True, slots=True)
class Ours:
    """The pipeline loop. Without `learned` the mixture starts even and only its genes move it."""

    children: int = 1
    learned: bool = True

    def __call__(self, field: Field, workshop: Workshop, tokens: int) -> list[Moment]:
        loop = PipelineLoop(
            PipelineSettings(
                stages=(Stage.SFT,), sft=DEFAULT if self.learned else DEFAULT.with_mixture(EVEN), ranges=RANGES,
                children=self.children, fresh_items=ITEMS, save_steps=STEPS,
            ),
            [field.task.to_json()], field.seal, field.sources, NOBODY,
        )
        base = field.world.base
        state, model, spent, trials, moments = loop.start(), base, 0, 0, [Moment(0, base, 0)]
        while spent < tokens:
            seed = seed_from("tuner", field.world.seed, trials)
            candidate = loop.propose(state, base, model, seed)
            cycle = Cycle(trials, loop.name, None, trials, candidate, state, Budget(1e9, tokens - spent, 1))
            bench = Bench(cycle, workshop, "study", no_descent, 1e9, seed)
            outcome = guarded(partial(_judged, loop, candidate, bench))
            state = loop.learn(state, candidate, outcome)
            trials, spent = trials + 1, spent + bench.spent.tokens
            if outcome.verdict is Verdict.TIMED_OUT:
                break
            if outcome.verdict is Verdict.PROMOTED:
                model = str(outcome.result)
                moments.append(Moment(spent, model, trials))
        return [*moments, Moment(spent, model, trials)]


def _judged(loop: PipelineLoop, candidate: Candidate, bench: Bench) -> Outcome:
    return loop.judge(candidate, loop.run(candidate, bench))


@dataclass(frozen=True, slots=True)
class FromScratch:
    """Every rung is trained from step 0 on, recipes drawn by an Optuna sampler; its model is the one of the best value.

    With three rungs ASHA as it is where trials cannot be taken up again; with one, full budgets only.
    """

    rungs: int
    sampler: Sampler

    def __call__(self, field: Field, workshop: Workshop, tokens: int) -> list[Moment]:
        settings = PipelineSettings(stages=(Stage.SFT,), sft=DEFAULT.with_mixture(EVEN), ranges=RANGES)
        ladder, tried, base = Ladder(rungs=self.rungs), list[Configuration](), field.world.base
        best, model, spent, trials, moments = 0.0, base, 0, 0, [Moment(0, base, 0)]
        while spent < tokens:
            seed = seed_from("tuner", field.world.seed, trials)
            chosen = survivor(tried, ladder) or fresh(tried, settings.space, SOURCES, NOTHING, seed, self.sampler)
            found = guarded(partial(_trained, field, workshop, chosen, ladder.end(chosen), tokens - spent, seed))
            trials += 1
            if isinstance(found, Trained):
                spent += found.tokens
                values = (*chosen.values, found.value)
                after = replace(chosen, step=ladder.end(chosen), values=values)
                if found.value > best:
                    best, model = found.value, found.model
                    moments.append(Moment(spent, model, trials))
            elif found.verdict is Verdict.TIMED_OUT:
                break
            else:
                after = replace(chosen, failed=found.reason)
            tried = [c for c in tried if c.id != after.id] + [after]
        return [*moments, Moment(spent, model, trials)]


@dataclass(frozen=True, slots=True)
class Trained:
    model: str
    value: float
    tokens: int


def _trained(
    field: Field, workshop: Workshop, configuration: Configuration, steps: int, max_tokens: int, seed: int
) -> Trained:
    """A recipe trained from the base to a step and measured against it. Raises JobFailed where no step was done."""
    base, names = field.world.base, configuration.recipe.shares(field.sources)
    inputs = {"model": base, **{f"data:{name}": field.sources[name] for name in names}}
    params: JsonObject = {
        "recipe": configuration.recipe.to_json(), "from_step": 0, "to_step": steps, "save_steps": STEPS,
        "max_tokens": max_tokens,
    }
    made = workshop.run(JobSpec("train", inputs, params, seed))
    if not made.outputs:
        raise JobFailed(str(made.values["stopped"]), Verdict.TIMED_OUT)
    inputs = {"model:new": made.outputs["model"], "model:old": base, "seal": field.seal}
    asked: JsonObject = {"tasks": [field.task.to_json()], "count": ITEMS, "seed": seed, "race": False}
    compared = workshop.run(JobSpec("compare", inputs, asked)).values["pooled"]
    return Trained(made.outputs["model"], float(compared["mean"]), made.cost.tokens)


OURS: Final = "kaizend"
RESTART: Final = "Optuna, ASHA by restart"
RANDOM: Final = "random search"
ARMS: Final[Mapping[str, Arm]] = {
    OURS: Ours(),
    "kaizend without children": Ours(children=0),
    "kaizend, mixture from its genes alone": Ours(learned=False),
    RESTART: FromScratch(3, Sampler.TPE),
    RANDOM: FromScratch(1, Sampler.RANDOM),
}


def field_of(world: World, models: Path, folder: Path) -> tuple[Field, dict[str, Path]]:
    """The field of one seed and the folders of its sources and seal, those that are new made in `folder`."""
    rows = bilingual.corpus("base", world.seed + 1_000, SPOILED_ROWS)
    said = [answer for _, answer in rows]
    random.Random(world.seed).shuffle(said)
    spoiled, seal = folder / "spoiled.jsonl", folder / "seal"
    spoiled.write_text("".join(
        json.dumps({"prompt": prompt, "answer": answer}) + "\n"
        for (prompt, _), answer in zip(rows, said, strict=True)
    ))
    seal.mkdir(exist_ok=True)
    (seal / "nothing.json").write_text("[]")
    data = models / "data"
    places = {"language": data / "expert_language.jsonl", "maths": data / "expert_maths.jsonl", "spoiled": spoiled}
    digests = {name: digest_of(manifest_of(path)) for name, path in places.items()}
    folders = {digests[name]: path for name, path in places.items()}
    sealed = digest_of(manifest_of(seal))
    return Field(world, digests, sealed, world.tasks[0]), {**folders, sealed: seal}


@dataclass(frozen=True, slots=True)
class Course:
    """What one arm reached: [tokens, trials, accuracy on all unseen items], each from there on; and its seconds."""

    points: list[tuple[int, int, float]]
    seconds: float

    @property
    def final(self) -> float:
        return self.points[-1][2]

    def tokens_to(self, score: float) -> int | None:
        """The tokens after which its model first had this score, None where it never had."""
        return next((tokens for tokens, _, found in self.points if found >= score), None)


def course(name: str, world: World, models: Path, tokens: int, kept: Path) -> Course:
    """The course of an arm, run where it is not kept for the same program."""
    key = ["tuner", repr(ARMS[name]), world.seed, list(world.models), tokens, _read_at_start()]
    file = kept / f"tuner-{world.seed}-{digest_of(key)[:16]}.json"
    if file.is_file():
        body = json.loads(file.read_text())
        return Course([(int(t), int(n), float(s)) for t, n, s in body["points"]], body["seconds"])
    with TemporaryDirectory(prefix="kaizend-study-") as scratch:
        field, folders = field_of(world, models, Path(scratch))
        workshop = Workshop(Path(scratch), {**world.folders, **folders})
        began = time.monotonic()
        moments = ARMS[name](field, workshop, tokens)
        seconds, scores = round(time.monotonic() - began, 1), dict[str, float]()
        for model in {moment.model for moment in moments}:
            scores[model] = share(answers(workshop.folders[model], [field.task])[field.task.name])
        found = Course([(m.tokens, m.trials, scores[m.model]) for m in moments], seconds)
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_suffix(".partial")
    written.write_text(canonical({"arm": name, "points": found.points, "seconds": seconds}))
    written.rename(file)
    return found


@cache
def _read_at_start() -> JsonObject:
    """The digests of the program; what is written to it while a study runs is not what it runs."""
    return dict(digests_of(ROOT, SOURCES_OF_PROGRAM))
