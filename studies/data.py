"""The learned data mixture beside an even one at equal tokens: one useful source, one useless and one harmful.

Every arm is the pipeline loop, cycle after cycle from the demo's base on, each a short run of the demo's own recipe;
what is promoted is trained on from. The sources have the same number of rows, and none holds an item of the vault's
population. A budget of tokens is for all that was learned, the weighing of the sources included.

    useful    questions of the target's search split, with their answers
    useless   copying in language 2, which the base does already
    harmful   the same kind of questions, with answers that are wrong by one rule: one too many
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from loops.loop import Bench
from loops.pipeline.loop import PipelineLoop
from loops.pipeline.recipe import Adapter, Recipe, Schedule, Stage
from loops.pipeline.settings import PipelineSettings
from loops.pipeline.space import Ranges
from safety.yardstick import bilingual
from state.files import manifest_of
from state.jobs import JobFailed
from state.records import Budget, Cycle, JsonObject, Verdict, digest_of, seed_from
from studies.findings import MERGES
from studies.world import NOBODY, Climb, Workshop, World, no_descent

SOURCES_OF_CODE = (*MERGES, "loops/loop.py", "loops/pipeline", "studies/data.py")
"""What an arm comes from."""
ROWS = 8_000
USEFUL, USELESS, HARMFUL = "useful", "useless", "harmful"
SOURCES = (USEFUL, USELESS, HARMFUL)
RECIPE = Recipe(Stage.SFT, learning_rate=1e-3, batch=64, steps=100, schedule=Schedule.LINEAR, adapter=Adapter())
AS_IT_IS = Ranges(learning_rate=(1.0, 1.0), batch=(), warmup=(), schedules=(), ranks=(), alpha_by_rank=(), tilt=0.0)
FRESH_ITEMS = 2048
SECONDS = 1e9
NOTHING_SEALED = "nothing is sealed"


@dataclass(frozen=True, slots=True)
class Mixed:
    """One arm: `shares` by source, or none where they are learned. Nothing else of the recipe varies."""

    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> PipelineSettings:
        return PipelineSettings(
            stages=(Stage.SFT,), sft=replace(RECIPE, mixture=dict(self.shares)), ranges=AS_IT_IS, rungs=1,
            fresh_items=FRESH_ITEMS,
        )

    def __call__(self, world: World, workshop: Workshop, tokens: int) -> Climb:
        """Cycles until `tokens` do not suffice for a step; the climb's `spent` are tokens."""
        sources = written(world.seed, workshop)
        loop = PipelineLoop(self.settings, [world.tasks[0].to_json()], NOTHING_SEALED, sources, NOBODY)
        state, model, moves, spent = loop.start(), world.base, 0, 0
        seen: list[dict[str, int]] = []
        while True:
            own_seed = seed_from("data", world.seed, len(seen))
            candidate = loop.propose(state, model, model, own_seed)
            budget = Budget(SECONDS, tokens - spent, 0)
            cycle = Cycle(len(seen), loop.name, None, len(seen), candidate, state, budget)
            bench = Bench(cycle, workshop, "study", no_descent, SECONDS, own_seed)
            try:
                outcome = loop.judge(candidate, loop.run(candidate, bench))
            except JobFailed:
                return Climb(model, moves, len(seen), spent + bench.spent.tokens, 0, tuple(seen))
            state = loop.learn(state, candidate, outcome)
            spent += bench.spent.tokens
            seen.append(trained_on(outcome.lesson))
            if outcome.verdict is Verdict.PROMOTED:
                assert outcome.result is not None
                model, moves = outcome.result, moves + 1


LEARNED, UNIFORM = "learned mixture", "uniform mixture"
ARMS: Mapping[str, Mixed] = {LEARNED: Mixed(), UNIFORM: Mixed(dict.fromkeys(SOURCES, 1.0))}


def trained_on(lesson: JsonObject) -> dict[str, int]:
    """Tokens of every source that a cycle trained on. What was weighed is thrown away and not among them."""
    return {name: int(lesson["sources"].get(name, {}).get("tokens", 0)) for name in SOURCES}


def part_of(source: str, cycles: Sequence[Mapping[str, int]]) -> float:
    """The part of what some cycles trained on that came from a source, by tokens."""
    return sum(cycle[source] for cycle in cycles) / max(1, sum(sum(cycle.values()) for cycle in cycles))


def rows_of(source: str, seed: int) -> list[tuple[str, str]]:
    """(prompt, answer) of one source."""
    family = "copying2" if source == USELESS else "maths2"
    held = bilingual.items(family, "search", bilingual.population(family, "search"), seed)
    rows = random.Random(f"{source}/{seed}").choices(held, k=ROWS)
    return [(prompt, one_too_many(answer)) for prompt, answer in rows] if source == HARMFUL else rows


def one_too_many(answer: str) -> str:
    """A number and its name, both one too large; after the largest comes 0."""
    number = (int(answer.split()[0]) + 1) % bilingual.NUMERALS
    return f"{number} {bilingual.spell(number)}"


def written(seed: int, workshop: Workshop) -> dict[str, str]:
    """The sources as folders, {name: digest}, and a seal in which there is nothing."""
    found = {}
    for name in SOURCES:
        folder = workshop.folder / name
        folder.mkdir(exist_ok=True)
        lines = [json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows_of(name, seed)]
        (folder / "rows.jsonl").write_text("".join(lines))
        found[name] = digest_of(manifest_of(folder))
        workshop.folders[found[name]] = folder
    workshop.folders[NOTHING_SEALED] = workshop.folder / "seal"
    workshop.folders[NOTHING_SEALED].mkdir(exist_ok=True)
    return found
