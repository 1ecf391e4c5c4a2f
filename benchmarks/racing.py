"""Racing: what screening a candidate costs beside generating every answer, and whether both choose alike.

The demo's models, tasks and settings; merges alone, one search a seed. Every candidate is screened as the search does
it: by likelihood on the shared items and, where it leads there, on fresh ones, until a race decides. Then the same
candidate is scored in full: greedy decoding of an answer to every shared and every fresh item, by the candidate and by
the incumbent where its answer is not known yet. In full it is chosen where the paired test over all fresh items says
so, and the shared items decide nothing. The search goes on from what racing chose.

Both sides run in one process on one thread, each with its own models in memory; the first candidate of a search, which
loads them, is left out. Seconds are those of the process on a processor, so that other load counts little. Choices that
differ are told on stderr.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figure import Figure
from daemon.demo import CONFIG_TOML
from daemon.settings import load_settings
from loops.architecture.loop import ArchitectureLoop
from loops.loop import Bench
from loops.work.build import build
from loops.work.pretrain import make_demo_models
from loops.work.screen import Bed, screen
from safety.yardstick.compare import paired, wilson
from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.scoring import Scored, Scores, generate_scores
from safety.yardstick.verifiers import make_verifier
from state.jobs import Desk, JobFailed, JobResult, JobSpec
from state.records import Budget, Cost, Cycle, JsonObject, Verdict, seed_from

SEEDS = (0, 1, 2)
CANDIDATES = 48
TIME_GOAL, CHOICE_GOAL = 0.2, 0.05
BASE, *PARENTS = ("base", "expert-maths", "expert-language")


@dataclass(frozen=True, slots=True)
class Decision:
    """One candidate: seconds of a processor and the choice, raced and in full."""

    raced_seconds: float
    full_seconds: float
    raced: bool
    full: bool


@dataclass
class Workshop:
    """Runs the jobs of a search here and now, and keeps what was screened last and how long that took."""

    folder: Path
    models: dict[str, Path]
    cache: dict[str, Any] = field(default_factory=dict)
    screened: JobSpec | None = None
    seconds: float = 0.0

    def run(self, spec: JobSpec, *, timeout_seconds: float | None = None) -> JobResult:
        began = time.process_time()
        if spec.kind == "screen":
            values = screen(spec, self.desk(spec, self.cache)).values
            self.screened, self.seconds = spec, time.process_time() - began
            return JobResult(values, {}, Cost())
        name = f"merged-{len(self.models)}"
        (self.folder / name).mkdir()
        self.models[name] = build(spec, replace(self.desk(spec, {}), folder=self.folder / name)).outputs["model"]
        return JobResult({}, {"model": name}, Cost())

    def run_all(self, specs: Sequence[JobSpec], *, timeout_seconds: float | None = None) -> list[JobResult | JobFailed]:
        return [self.run(spec) for spec in specs]

    def desk(self, spec: JobSpec, cache: dict[str, Any]) -> Desk:
        return Desk(self.folder, {name: self.models[digest] for name, digest in spec.inputs.items()}, cache=cache)


@dataclass
class InFull:
    """The same choice by generation alone. Answers of incumbents are kept, as the raced side keeps its scores."""

    workshop: Workshop
    cache: dict[str, Any] = field(default_factory=dict)
    known: dict[tuple[str, Item], float] = field(default_factory=dict)

    def chooses(self, spec: JobSpec) -> tuple[bool, float]:
        """Whether the candidate of a screening is chosen, and the seconds that it took."""
        began = time.process_time()
        params = spec.params
        bed = Bed.of(spec, self.workshop.desk(spec, self.cache))
        candidate = bed.candidate(params["change"]).shell
        incumbent = bed.book.model(params["incumbent"], f"model:{params['incumbent']}")
        shared = bed.drawn(params["fitness_count"], params["fitness_seed"])
        fresh = bed.drawn(params["fresh_count"], params["fresh_seed"])
        news: list[Scores] = []
        olds: list[Scores] = []
        for met, drawn in zip(shared, fresh, strict=True):
            left = [item for item in drawn.items if item not in set(met.items)]
            _generated(candidate, met.task, met.items, bed.book.batch)         # what the search learns from
            self._of_incumbent(params["incumbent"], incumbent, met.task, met.items, bed.book.batch)
            news.append(_generated(candidate, drawn.task, left, bed.book.batch))
            olds.append(self._of_incumbent(params["incumbent"], incumbent, drawn.task, left, bed.book.batch))
        chosen = paired(np.concatenate(news), np.concatenate(olds)).p_value < params["level"]
        return bool(chosen), time.process_time() - began

    def _of_incumbent(self, digest: str, model: Scored, task: TaskSpec, items: list[Item], batch: int) -> Scores:
        missing = [item for item in items if (digest, item) not in self.known]
        scores = _generated(model, task, missing, batch).tolist() if missing else []
        self.known.update(((digest, item), score) for item, score in zip(missing, scores, strict=True))
        return np.array([self.known[digest, item] for item in items], dtype=np.float32)


def figures(homes: Sequence[Path] = (), candidates: int = CANDIDATES) -> Iterator[Figure]:
    """Of one search for each folder of the demo's models; where there are none, these are made first."""
    with tempfile.TemporaryDirectory(prefix="kaizend-bench-") as folder:
        homes = homes or list(made(Path(folder)))
        ratios: list[float] = []
        differing = total = 0
        for seed, home in enumerate(homes):
            work = Path(folder) / f"search-{seed}"
            work.mkdir()
            found = list(decisions(home, work, seed, candidates))
            ratios.append(sum(d.raced_seconds for d in found) / sum(d.full_seconds for d in found))
            differing, total = differing + sum(d.raced != d.full for d in found), total + len(found)
    yield Figure.of("seconds of a raced candidate, in those of one with full generation", ratios, TIME_GOAL)
    low, high = wilson(differing, total)
    yield Figure(f"choices of {total} that racing makes otherwise", differing / total, low, high, CHOICE_GOAL)


def made(folder: Path) -> Iterator[Path]:
    for seed in SEEDS:
        make_demo_models(folder / f"models-{seed}", seed, 1, lambda what, done: None)
        yield folder / f"models-{seed}"


def decisions(home: Path, work: Path, seed: int, candidates: int) -> Iterator[Decision]:
    """One search over the models in `home`, the first candidate left out."""
    torch.set_num_threads(1)
    (work / "kaizend.toml").write_text(CONFIG_TOML.format(seed=seed))
    settings = load_settings(work / "kaizend.toml")
    tasks: list[JsonObject] = [task.to_json() for task in settings.task_specs() if task.role == "target"]
    inner: Any = None                                               # never reached: the search goes on and on
    loop = ArchitectureLoop(replace(settings.architecture, patience=10**6), tasks, inner, BASE, tuple(PARENTS))
    workshop = Workshop(work, {name: home / name for name in (BASE, *PARENTS)})
    in_full, state, incumbent, budget = InFull(workshop), loop.start(), BASE, Budget(1e9, 10**9, 10**6)
    for ordinal in range(candidates + 1):
        own = seed_from("racing", seed, ordinal)
        candidate = loop.propose(state, incumbent, incumbent, own)
        cycle = Cycle(1, loop.name, None, ordinal, candidate, state, budget)
        bench = Bench(cycle, workshop, "", _no_children, 1e9, own)
        outcome = loop.judge(candidate, loop.run(candidate, bench))
        assert workshop.screened is not None
        full, seconds = in_full.chooses(workshop.screened)
        decision = Decision(workshop.seconds, seconds, outcome.verdict is Verdict.PROMOTED, full)
        if decision.raced != decision.full:
            print(f"racing: seed {seed}, candidate {ordinal}: in full {'chosen' if full else 'not chosen'}, raced: "
                  f"{outcome.reason}", file=sys.stderr)
        state = loop.learn(state, candidate, outcome)
        incumbent = str(outcome.result) if decision.raced else incumbent
        if ordinal:
            yield decision


def _generated(scored: Scored, task: TaskSpec, items: list[Item], batch: int) -> Scores:
    return generate_scores(scored.model, scored.tokenizer, items, make_verifier(task), batch)


def _no_children(*_: object) -> Any:
    raise AssertionError("a search of merges alone has no children")


if __name__ == "__main__":
    count, *folders = sys.argv[1:] or [str(CANDIDATES)]
    for figure in figures([Path(folder) for folder in folders], int(count)):
        print(json.dumps(figure.to_json()), flush=True)
