"""Whatever befalls a training trial, it ends with a verdict and its reason in the ledger, and the study goes on.

Real loops, ledger, worker processes and jobs, on a tiny model; one trial after another in one study, each of them hit
by something else. What is working and stable neither moves nor changes by a byte.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from coaching import TASK
from synthetic import ALLOWED
from tiny import tiny_model
from toy_house import House as Rooms

from loops.cycle import House, run_cycle
from loops.pipeline.loop import PipelineLoop
from loops.pipeline.recipe import DPO, GRPO, SFT, Adapter, Recipe, Stage
from loops.pipeline.settings import PipelineSettings
from loops.reward.loop import RewardLoop, RewardSettings
from safety.yardstick import bilingual
from state.jobs import JobFailed, JobResult, JobSpec
from state.ledger import Ledger
from state.records import Budget, Channel, Entry, Event, Outcome, Row, Verdict

TABLE = Path(__file__).resolve().parents[1] / "faulty_training.py"
STEPS = 6
BUDGET = Budget(600.0, 10**9, 100)
FINISHED = (Verdict.PROMOTED, Verdict.REJECTED)
KINDS = {Stage.SFT: "train", Stage.DPO: "prefer", Stage.GRPO: "segment"}
LATER = pytest.mark.long


@dataclass
class Meddler:
    """A runner that gives the next training trial a mishap. `ran` are the training jobs it was asked for."""

    rooms: Rooms
    mishap: str | None = None
    ran: list[JobSpec] = field(default_factory=list)

    def run(self, spec: JobSpec, *, timeout_seconds: float | None = None) -> JobResult:
        return self.rooms.runner.run(self._met(spec), timeout_seconds=timeout_seconds)

    def run_all(
        self, specs: Sequence[JobSpec], *, timeout_seconds: float | None = None
    ) -> list[JobResult | JobFailed]:
        return self.rooms.runner.run_all([self._met(spec) for spec in specs], timeout_seconds=timeout_seconds)

    def _met(self, spec: JobSpec) -> JobSpec:
        if spec.kind in KINDS.values():
            spec = replace(spec, params={**spec.params, **({"mishap": self.mishap} if self.mishap else {})})
            self.mishap = None
            self.ran.append(spec)
        return spec


class Study:
    """A life that has begun, with trials of every stage."""

    def __init__(self, folder: Path) -> None:
        self.rooms = Rooms(folder / "var", table=TABLE)
        self.registry, self.runner = self.rooms.registry, Meddler(self.rooms)
        self.ledger = Ledger(self.rooms.database, self.registry)
        model = tiny_model(folder / "model", bilingual.VOCABULARY[3:], seed=1)
        self.start = self.registry.add_copy(model, "model")
        self.sources = {}
        for number, name in enumerate(("expert_maths", "expert_language")):
            rows = bilingual.corpus(name, number, 60)
            (folder / name).write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows))
            self.sources[name] = self.registry.add_copy(folder / name, "data")
        pairs = [{"prompt": p, "chosen": a, "rejected": f"{a} {a}"} for p, a in rows]
        (folder / "preferences").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        self.preferences = {"preferences": self.registry.add_copy(folder / "preferences", "data")}
        seal = folder / "seal"
        seal.mkdir()
        (seal / f"{TASK['name']}.json").write_text("[]")
        self.seal = self.registry.add_copy(seal, "seal")
        for channel in (Channel.STABLE, Channel.WORKING):
            self.ledger.append(Entry(Event.GENESIS, "a start"), move=(channel, self.start))
        self.house = House(self.ledger, self.runner, lambda: ALLOWED, "", 7)

    def close(self) -> None:
        self.rooms.__exit__()

    def cycle(self, stage: Stage, mishap: str | None = None) -> Outcome:
        """One outermost cycle: a trial of that stage on the first model."""
        self.runner.mishap = mishap
        sft = replace(SFT, learning_rate=1e-3, batch=8, steps=STEPS, adapter=Adapter(), mixture={})
        grpo = replace(GRPO, learning_rate=1e-3, batch=3, group=4, steps=STEPS, adapter=Adapter(), mixture={})
        dpo = replace(DPO, learning_rate=1e-3, batch=8, steps=STEPS, adapter=Adapter())
        settings = PipelineSettings(
            stages=(stage,), sft=sft, dpo=dpo, grpo=grpo, pair_prompts=0, rungs=1, segment_steps=STEPS, fresh_items=16,
            save_steps=2,
        )
        reward = RewardLoop(RewardSettings(probe_items=8, strength=0.0), [TASK], self.seal, self.sources)
        loop = PipelineLoop(settings, [TASK], self.seal, self.sources, reward, self.preferences)
        return run_cycle(
            self.house, loop, None, self.ledger.root_count(), self.start, self.ledger.channel(Channel.WORKING) or "",
            BUDGET,
        )

    def in_force(self) -> dict[str, str | None]:
        for channel in Channel:
            digest = self.ledger.channel(channel)
            assert digest is not None
            assert self.registry.verify(digest) == []
            assert (self.registry.root / str(channel)).resolve() == self.registry.path(digest).resolve()
        return {str(channel): self.ledger.channel(channel) for channel in Channel}

    def last_row(self) -> Row:
        row = self.ledger.latest(Event.CLOSED)
        assert row is not None
        return row

    def scratch(self) -> list[str]:
        return [path.name for path in (self.rooms.folder / "jobs").iterdir() if len(path.name) == 64]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    study = Study(tmp_path_factory.mktemp("study"))
    yield study
    study.close()


def ends_in_words(study: Study, stage: Stage, mishap: str | None, *words: str) -> None:
    """The trial that is hit CRASHES with these words in its row, moves nothing, and leaves nothing behind."""
    before = study.in_force()
    outcome = study.cycle(stage, mishap)
    row = study.last_row()
    assert (outcome.verdict, row.verdict, row.reason) == (Verdict.CRASHED, "CRASHED", outcome.reason)
    for word in (KINDS[stage], *words):
        assert word in outcome.reason, outcome.reason
    assert study.in_force() == before
    assert study.ledger.open_cycles() == []


def goes_on(study: Study, stage: Stage) -> None:
    """The next trial of the study runs to its end, with another recipe or seed than any before."""
    told = [spec.digest for spec in study.runner.ran]
    outcome = study.cycle(stage)
    assert outcome.verdict in FINISHED, outcome.reason
    assert study.runner.ran[-1].digest not in told
    assert outcome.evidence["reached"] == STEPS


MISHAPS = {
    "loss:5": ["Diverged", "loss is nan at step 5"],
    "gradient:5": ["Diverged", "grad_norm is nan at step 5"],
    "memory:5": ["OutOfMemoryError", "out of memory"],
    "kill:5": ["signal 9", "as the kernel does when memory runs out", "in 3 attempts"],
}


@pytest.mark.parametrize(("stage", "mishap"), [
    (Stage.SFT, "loss:5"), (Stage.GRPO, "gradient:5"), (Stage.GRPO, "memory:5"), (Stage.SFT, "kill:5"),
    (Stage.DPO, "gradient:5"),
    *(pytest.param(*case, marks=LATER) for case in (
        (Stage.GRPO, "loss:5"), (Stage.SFT, "gradient:5"), (Stage.SFT, "memory:5"), (Stage.GRPO, "kill:5"),
        (Stage.DPO, "loss:5"), (Stage.DPO, "memory:5"), (Stage.DPO, "kill:5"),
    )),
])
def test_a_trial_that_cannot_be_done_crashes_in_words_and_the_next_one_runs(
    study: Study, stage: Stage, mishap: str
) -> None:
    ends_in_words(study, stage, mishap, *MISHAPS[mishap])
    assert study.scratch() == []
    goes_on(study, stage)


@pytest.mark.parametrize(("stage", "mishap"), [
    (Stage.SFT, "memory:5:once"), (Stage.GRPO, "kill:5:once"),
    *(pytest.param(*case, marks=LATER) for case in (
        (Stage.GRPO, "memory:5:once"), (Stage.SFT, "kill:5:once"), (Stage.DPO, "memory:5:once"),
        (Stage.DPO, "kill:5:once"),
    )),
])
def test_a_trial_that_is_hit_once_is_carried_on_to_its_end(study: Study, stage: Stage, mishap: str) -> None:
    outcome = study.cycle(stage, mishap)
    assert outcome.verdict in FINISHED, outcome.reason
    hit = study.rooms.book.result(study.runner.ran[-1].digest)
    assert hit is not None
    assert hit.values["steps"] == STEPS
    recipe = Recipe.from_json(study.runner.ran[-1].params["recipe"])
    half = (recipe.batch if stage is Stage.DPO else recipe.completions) // 2
    assert hit.values["learned"] == ({"micro_batch": half} if "memory" in mishap else {})
    assert study.rooms.book.starts(study.runner.ran[-1].digest) == (1 if "memory" in mishap else 2)


def changed(file: Path) -> None:
    """A word of the file is another one."""
    file.write_bytes(file.read_bytes().replace(b"answer", b"ansver", 1))


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def gone(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(("stage", "damage"), [
    (Stage.SFT, changed), (Stage.GRPO, truncated),
    *(pytest.param(*case, marks=LATER) for case in (
        (Stage.GRPO, changed), (Stage.SFT, truncated), (Stage.SFT, gone), (Stage.GRPO, gone)
    )),
])
def test_a_data_file_that_changes_between_two_trials_is_named_and_the_study_goes_on_once_it_is_back(
    study: Study, stage: Stage, damage: Callable[[Path], None]
) -> None:
    file = study.registry.path(study.sources["expert_maths"])
    with spoiled(file, damage):
        ends_in_words(study, stage, None, "its input 'data:expert_maths' is damaged", str(file))
    goes_on(study, stage)


@pytest.mark.parametrize("stage", [Stage.SFT, pytest.param(Stage.GRPO, marks=LATER)])
def test_a_data_file_that_changes_while_a_trial_reads_it_costs_that_trial_and_nothing_of_it_is_kept(
    study: Study, stage: Stage
) -> None:
    file = study.registry.path(study.sources["expert_language"])
    once = threading.Event()

    def meddle(kind: str, done: float, note: str) -> None:
        if kind == KINDS[stage] and not once.is_set():
            once.set()
            changed(file)

    kept = study.registry.digests()
    with spoiled(file, lambda file: None):
        study.rooms.runner.on_progress = meddle
        ends_in_words(study, stage, None, "its input 'data:expert_language' is damaged")
        study.rooms.runner.on_progress = lambda kind, done, note: None
    assert study.registry.digests() == kept
    assert study.scratch() == []
    goes_on(study, stage)


class spoiled:
    """A kept file with something done to it, and as it was afterwards."""

    def __init__(self, file: Path, damage: Callable[[Path], None]) -> None:
        self.file, self.damage, self.bytes = file, damage, file.read_bytes()

    def __enter__(self) -> None:
        self.file.chmod(0o644)
        self.file.parent.chmod(0o755)
        self.damage(self.file)

    def __exit__(self, *_: Any) -> None:
        self.file.write_bytes(self.bytes)
        self.file.chmod(0o444)
