"""The pipeline's tuner beside Optuna with ASHA by restart and beside random search, at equal training tokens.

Every arm begins with the same base model and the operator's same poor default, may train on the same number of tokens
by the real jobs and gives one model at any time: the one that it would use. Two traps are set. The upper third of the
learning rates ruins the model, and one of three data sources has every second answer of another row.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Protocol

from loops.cycle import guarded
from loops.loop import Bench
from loops.pipeline.loop import PipelineLoop
from loops.pipeline.recipe import Adapter, Recipe, Schedule, Stage
from loops.pipeline.settings import PipelineSettings
from loops.pipeline.space import Ranges
from loops.pipeline.tuner import Configuration, Knowledge, Ladder, Sampler, fresh, survivor
from loops.work import pretrain
from safety.yardstick import bilingual
from safety.yardstick.items import TaskSpec
from state.code import digests_of
from state.files import manifest_of
from state.jobs import JobFailed, JobSpec
from state.records import Budget, Candidate, Cycle, JsonObject, Outcome, Verdict, canonical, digest_of, seed_from
from studies.paired import together
from studies.world import NOBODY, ROOT, Workshop, answers, no_descent

STEPS: Final = 180
BATCH: Final = 32
LEARNING_RATE: Final = 1.5e-4
FASTEST: Final = 600.0
"""The top of the span of learning rates, as a factor on the default: what is above a tenth of it ruins the model."""
ITEMS: Final = 512
ROWS: Final = 6_000
"""Of each data source."""
OTHER: Final = 1_000
"""What a seed is moved by for rows that no other source has drawn."""
FULL_BUDGETS: Final = 8
TOKENS: Final = FULL_BUDGETS * 71_000
TASKS: Final = ("naming2", "copying2")
NOVICE: Final = replace(pretrain.BASE, steps=150)
SOURCES: Final = ("language", "maths", "spoiled")
NOTHING: Final = Knowledge({}, {}, [])

SOURCES_OF_PROGRAM: Final = (
    "daemon/demo.py", "daemon/worker.py", "loops/cycle.py", "loops/loop.py", "loops/pipeline", "loops/work", "safety",
    "state", "studies/tuner.py", "studies/world.py",
)
"""What a course comes from."""

DEFAULT: Final = Recipe(
    Stage.SFT, learning_rate=LEARNING_RATE, batch=BATCH, steps=STEPS, schedule=Schedule.LINEAR, adapter=Adapter(),
    mixture=dict.fromkeys(SOURCES, 1.0),
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
    """What the arms of one seed work on: the base, data sources by digest, a seal that seals nothing, the targets."""

    seed: int
    base: str
    sources: Mapping[str, str]
    seal: str
    tasks: tuple[TaskSpec, ...]


class Arm(Protocol):
    def __call__(self, field: Field, workshop: Workshop, tokens: int) -> list[Moment]: ...


@dataclass(frozen=True, slots=True)
class Ours:
    """The pipeline loop. Where it does not weigh the sources, its genes alone move its mixture, as the others' do."""

    weighs: bool = True

    def __call__(self, field: Field, workshop: Workshop, tokens: int) -> list[Moment]:
        loop = PipelineLoop(
            PipelineSettings(
                stages=(Stage.SFT,), sft=DEFAULT.with_mixture({}) if self.weighs else DEFAULT, ranges=RANGES,
                fresh_items=ITEMS, save_steps=STEPS,
            ),
            [task.to_json() for task in field.tasks], field.seal, field.sources, NOBODY,
        )
        base = field.base
        state, model, spent, trials, moments = loop.start(), base, 0, 0, [Moment(0, base, 0)]
        while spent < tokens:
            seed = seed_from("tuner", field.seed, trials)
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
        settings = PipelineSettings(stages=(Stage.SFT,), sft=DEFAULT, ranges=RANGES)
        ladder, tried, base = Ladder(rungs=self.rungs), list[Configuration](), field.base
        best, model, spent, trials, moments = 0.0, base, 0, 0, [Moment(0, base, 0)]
        while spent < tokens:
            seed = seed_from("tuner", field.seed, trials)
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
    base, names = field.base, configuration.recipe.shares(field.sources)
    inputs = {"model": base, **{f"data:{name}": field.sources[name] for name in names}}
    params: JsonObject = {
        "recipe": configuration.recipe.to_json(), "from_step": 0, "to_step": steps, "save_steps": STEPS,
        "max_tokens": max_tokens,
    }
    made = workshop.run(JobSpec("train", inputs, params, seed))
    if not made.outputs:
        raise JobFailed(str(made.values["stopped"]), Verdict.TIMED_OUT)
    inputs = {"model:new": made.outputs["model"], "model:old": base, "seal": field.seal}
    asked: JsonObject = {"tasks": [task.to_json() for task in field.tasks], "count": ITEMS, "seed": seed, "race": False}
    compared = workshop.run(JobSpec("compare", inputs, asked)).values["pooled"]
    return Trained(made.outputs["model"], float(compared["mean"]), made.cost.tokens)


OURS: Final = "kaizend"
RESTART: Final = "Optuna, ASHA by restart"
RANDOM: Final = "random search"
UNWEIGHED: Final = "kaizend, no source weighed"
ARMS: Final[Mapping[str, Arm]] = {
    OURS: Ours(),
    RANDOM: FromScratch(1, Sampler.RANDOM),
    RESTART: FromScratch(3, Sampler.TPE),
    UNWEIGHED: Ours(weighs=False),
}


def novice_of(seed: int, folder: Path) -> Path:
    """The folder of one seed's base model, made where it is not there yet: the demo's base, but trained briefly."""
    place, partial = folder / f"seed-{seed}", folder / f"seed-{seed}.partial"
    if not place.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        model, tokenizer = pretrain.fresh_model(seed), pretrain.word_tokenizer()
        rows = bilingual.corpus(NOVICE.kind, seed, NOVICE.rows)
        pretrain.train(model, tokenizer, rows, NOVICE, seed, lambda done: None)
        model.save_pretrained(partial, safe_serialization=True)
        tokenizer.save_pretrained(partial)
        partial.rename(place)
    return place


def field_of(seed: int, novice: Path, folder: Path) -> tuple[Field, dict[str, Path]]:
    """The field of one seed, and the folders of all that it names; sources and seal are made in `folder`."""
    taught = bilingual.corpus("expert_language", seed, ROWS)
    asked = bilingual.corpus("expert_language", seed + OTHER, ROWS)
    others = [answer for _, answer in asked[::2]]
    random.Random(seed).shuffle(others)
    said = [others[place // 2] if place % 2 == 0 else answer for place, (_, answer) in enumerate(asked)]
    rows = {
        "language": taught, "maths": bilingual.corpus("expert_maths", seed, ROWS),
        "spoiled": [(prompt, answer) for (prompt, _), answer in zip(asked, said, strict=True)],
    }
    places = {"base": novice, "seal": folder / "seal"}
    places["seal"].mkdir(exist_ok=True)
    (places["seal"] / "nothing.json").write_text("[]")
    for name in SOURCES:
        places[name] = folder / f"{name}.jsonl"
        lines = (json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows[name])
        places[name].write_text("".join(lines))
    digests = {name: digest_of(manifest_of(path)) for name, path in places.items()}
    tasks = tuple(
        TaskSpec.from_json({"name": name, "role": "target", "source": {"kind": "bilingual", "family": name}})
        for name in TASKS
    )
    field = Field(seed, digests["base"], {name: digests[name] for name in SOURCES}, digests["seal"], tasks)
    return field, {digests[name]: path for name, path in places.items()}


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

    def tokens_above(self, score: float) -> int | None:
        """The tokens after which its model was first above this score, None where it never was."""
        return next((tokens for tokens, _, found in self.points if found > score), None)


def course(name: str, seed: int, novice: Path, tokens: int, kept: Path) -> Course:
    """The course of an arm, run where it is not kept for the same program."""
    base = digest_of(manifest_of(novice))
    key = ["tuner", repr(ARMS[name]), seed, base, tokens, _read_at_start()]
    file = kept / f"tuner-{seed}-{digest_of(key)[:16]}.json"
    if file.is_file():
        body = json.loads(file.read_text())
        return Course([(int(spent), int(trials), float(score)) for spent, trials, score in body["points"]],
                      body["seconds"])
    with TemporaryDirectory(prefix="kaizend-study-") as scratch:
        field, folders = field_of(seed, novice, Path(scratch))
        workshop = Workshop(Path(scratch), folders)
        began = time.monotonic()
        moments = ARMS[name](field, workshop, tokens)
        seconds, scores = round(time.monotonic() - began, 1), dict[str, float]()
        for model in {moment.model for moment in moments}:
            scores[model] = together(answers(workshop.folders[model], field.tasks))
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
