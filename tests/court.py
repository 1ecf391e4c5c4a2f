"""A real state folder with a real ledger, registry and job book, and a runner that runs jobs in this process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from safety.bounds import Bounds
from safety.release import ReleaseDesk, Seals
from safety.yardstick.items import TaskSpec
from state.database import Database
from state.jobbook import JobBook
from state.jobs import Desk, JobFailed, JobFunction, JobResult, JobSpec, Produced
from state.records import Budget, Candidate, Channel, Cost, Entry, Event, LoopName, Outcome, Verdict
from state.registry import Registry
from state.signed import signed_ledger

TASKS = (
    TaskSpec("maths", "target", {"kind": "jsonl", "path": "unused"}, vault_items=100),
    TaskSpec("naming", "guard", {"kind": "jsonl", "path": "unused"}, guard_items=300),
)


@dataclass
class InlineRunner:
    """Runs job functions here and now, with the job book's memory."""

    registry: Registry
    book: JobBook
    jobs: Mapping[str, JobFunction]
    ran: list[JobSpec] = field(default_factory=list)

    def run(self, spec: JobSpec, *, timeout_seconds: float | None = None) -> JobResult:
        known = self.book.result(spec.digest)
        if known is not None:
            return known
        self.book.started(spec, 0)
        self.ran.append(spec)
        with tempfile.TemporaryDirectory(dir=self.registry.root) as folder:
            inputs = {name: self.registry.path(digest) for name, digest in spec.inputs.items()}
            try:
                produced = self.jobs[spec.kind](spec, Desk(Path(folder), inputs))
            except ValueError as error:
                raise JobFailed(str(error)) from error
            outputs = {name: self.registry.adopt(path, "scores") for name, path in produced.outputs.items()}
        result = JobResult(produced.values, outputs, Cost(items=produced.items))
        self.book.finished(spec, result)
        return result

    def run_all(
        self, specs: Sequence[JobSpec], *, timeout_seconds: float | None = None
    ) -> list[JobResult | JobFailed]:
        return [self.run(spec) for spec in specs]


@dataclass
class Court:
    """A life that has begun: one stable model, seals, and candidates made on demand."""

    root: Path
    jobs: Mapping[str, JobFunction]
    bounds: Bounds = field(default_factory=Bounds)
    tasks: Sequence[TaskSpec] = TASKS
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def __post_init__(self) -> None:
        database = Database(self.root / "kaizend.db")
        database.migrate()
        self.registry = Registry(self.root, database)
        self.registry.reconcile()
        self.book = JobBook(database)
        self.ledger = signed_ledger(
            database, self.registry, self.root / "signing.key", self.root / "signing.pub", self.root / "heads.jsonl",
            clock=lambda: self.now,
        )
        self.runner = InlineRunner(self.registry, self.book, self.jobs)

    def begin(self, stable: str, vault: Path, guard: Path, seal: Path) -> None:
        """The genesis row, and the seals in the registry."""
        seals = {"vault": vault, "guard": guard, "seal": seal}
        digests = {kind: self.registry.add_copy(path, kind) for kind, path in seals.items()}
        for channel in (Channel.STABLE, Channel.WORKING):
            self.ledger.append(Entry(Event.GENESIS, f"the first {channel} model", result=stable, evidence=digests),
                               move=(channel, stable))

    def text_model(self, name: str) -> str:
        """An artefact that stands for a model where no job looks inside."""
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "name.txt").write_text(name)
            return self.registry.add_copy(Path(folder), "model")

    def move_working(self, model: str) -> None:
        """One promoted root cycle."""
        working = self.ledger.channel(Channel.WORKING) or ""
        candidate = Candidate(LoopName.ARCHITECTURE, {"kind": "keep"}, working, working)
        cycle = self.ledger.open_cycle(None, self.ledger.root_count(), candidate, {}, Budget(1, 1, 1))
        self.ledger.close_cycle(cycle, Outcome(Verdict.PROMOTED, "better", model), {})

    def later(self, **delta: float) -> None:
        self.now += timedelta(**delta)

    @property
    def desk(self) -> ReleaseDesk:
        genesis = next(self.ledger.rows(event=Event.GENESIS)).evidence
        return ReleaseDesk(
            self.ledger, self.registry, self.runner, lambda: self.bounds, self.tasks,
            Seals(genesis["vault"], genesis["guard"], genesis["seal"]), "code", 0, now=lambda: self.now,
        )


def write_lines(file: Path, pairs: Iterable[tuple[str, str]], of: Callable[[str, str], dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(of(prompt, answer)) + "\n" for prompt, answer in pairs))


def canned(
    decision: str = "release", kl: float = 0.1, noise: float = 0.0, non_finite: int = 0
) -> dict[str, JobFunction]:
    """Job functions that answer as told, without any model: for what release does with the answers."""
    from safety.gate import Rules, decide

    def measure(spec: JobSpec, desk: Desk) -> Produced:
        facts = {"parameters": 10, "layers": 1, "dtypes": ["float32"], "file_gib": 0.1, "non_finite": non_finite}
        return Produced({"model": facts, "drift": {"kl_mean": kl}})

    def gate(spec: JobSpec, desk: Desk) -> Produced:
        if spec.params.get("aa"):
            return Produced({"aa": True, "items": 100, "disagreements": round(100 * noise), "noise": noise})
        rules = Rules.from_json(dict(spec.params))
        sign = {"release": 1.0, "guard_failed": 1.0, "futile": -1.0, "undecided": 0.0}[decision]
        new = [1.0 if sign > 0 else 0.0] * 100
        old = [1.0 if sign < 0 else 0.0] * 100
        held = 0.0 if decision == "guard_failed" else 1.0
        guard = {"items": [str(i) for i in range(300)], "new": [held] * 300, "old": [1.0] * 300}
        targets = {"items": [str(i) for i in range(100)], "new": new, "old": old}
        differences = [a - b for a, b in zip(new, old, strict=True)]
        found = decide(rules, [differences], {name: [[held - 1.0] * 300] for name in rules.margins})
        guards = dict.fromkeys(found.guards, guard)
        (desk.folder / "scores.json").write_text(json.dumps({"targets": targets, "guards": guards}))
        return Produced({**rules.to_json(), **found.to_json()}, {"scores": desk.folder / "scores.json"}, items=400)

    return {"measure": measure, "gate": gate}


def canned_court(root: Path, **answers: object) -> Court:
    """A court of canned jobs with its first model and seals."""
    root.mkdir(parents=True, exist_ok=True)
    court = Court(root, canned(**answers))  # type: ignore[arg-type]
    if court.ledger.head()[0] == 0:
        for kind in ("vault", "guard", "seal"):
            (root / "made" / kind).mkdir(parents=True)
            (root / "made" / kind / "maths.json").write_text(kind)
        made = root / "made"
        court.begin(court.text_model("first"), made / "vault", made / "guard", made / "seal")
    return court
