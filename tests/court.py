"""A real state folder with a real ledger, registry and job book, and a runner that runs jobs in this process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

GENERATED = (                      # the same tasks from generators: their releases can be watched
    TaskSpec("maths", "target", {"kind": "bilingual", "family": "maths2"}, vault_items=100),
    TaskSpec("naming", "guard", {"kind": "bilingual", "family": "naming2"}, guard_items=300),
)
TASKS = (
    TaskSpec("maths", "target", {"kind": "jsonl", "path": "unused"}, vault_items=100),
    TaskSpec("naming", "guard", {"kind": "jsonl", "path": "unused"}, guard_items=300),
)

FACTS: dict[str, object] = {
    "parameters": 10, "layers": 1, "dtypes": ["float32"], "file_gib": 0.1, "non_finite": 0, "vocabulary": 8,
    "hidden": 4, "intermediate": 8, "model_type": "llama", "loads_code": [],
}
SERVED = {
    "latency_ratio": 1.0, "speed_ratio": 1.0, "memory_ratio": 1.0, "latency_ms": 2.0, "tokens_per_second": 900.0,
    "memory_gib": 0.1,
}


ASKS = replace(                    # bounds under which what passed waits for the operator
    Bounds(), gate=replace(Bounds().gate, approval="required"),
    rate=replace(Bounds().rate, dwell_seconds=60.0, cycles_between_nominations=0),
)


@dataclass
class InlineRunner:
    """Runs job functions here and now, with the job book's memory."""

    registry: Registry
    book: JobBook
    jobs: Mapping[str, JobFunction]
    ran: list[JobSpec] = field(default_factory=list)
    kind_of: Callable[[str], str] = lambda output: "scores"                    # under which an output is kept

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
            outputs = {name: self.registry.adopt(path, self.kind_of(name)) for name, path in produced.outputs.items()}
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
    decision: str = "release", kl: float = 0.1, noise: float = 0.0, non_finite: int = 0, moved: float = 0.2,
    calibration: float = 0.1, serving: Mapping[str, float] | None = None,
    on_new_items: float = 0.0, on_new_guard: float = 0.0,
) -> dict[str, JobFunction]:
    """Job functions that answer as told, without any model: for what release does with the answers.

    `on_new_items` and `on_new_guard` are what the released model gains on average on what the watch deals.
    """
    from safety.gate import Rules, decide, items_digest
    from safety.yardstick.fresh import deal

    def measure(spec: JobSpec, desk: Desk) -> Produced:
        drift = {"kl_mean": kl, "relative_frobenius": moved}
        found = {"model": {**FACTS, "non_finite": non_finite}, "drift": drift}
        return Produced(found | {"calibration": {"error": calibration, "tokens": 100}})

    def serve(spec: JobSpec, desk: Desk) -> Produced:
        return Produced({**SERVED, **(serving or {})})

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

    def watch(spec: JobSpec, desk: Desk) -> Produced:
        size, start = spec.params["size"], spec.params["look"] * spec.params["size"]
        names = [*spec.params["targets"], *spec.params["guards"]]
        dealt = {name: (desk.inputs["dealt"] / f"{name}.jsonl").read_text().splitlines() for name in names}

        def record(name: str, gain: float) -> dict[str, list[object]]:
            lines = dealt[name][start : start + size]
            every = round(1 / abs(gain)) if gain else 0                # one item in so many goes the other way
            turned = [bool(every) and (start + place) % every == 0 for place in range(len(lines))]
            return {"items": [json.loads(line)["id"] for line in lines],
                    "new": [float(gain > 0) if turn else 0.0 for turn in turned],
                    "old": [float(gain < 0) if turn else 0.0 for turn in turned]}

        scores = {
            "targets": record(spec.params["targets"][0], on_new_items),
            "guards": {name: record(name, on_new_guard) for name in spec.params["guards"]},
        }
        (desk.folder / "scores.json").write_text(json.dumps(scores))
        more = any(len(lines) > start + size for lines in dealt.values())
        return Produced({"more": more, "items_digest": items_digest(scores)}, {"scores": desk.folder / "scores.json"})

    return {"measure": measure, "gate": gate, "serve": serve, "deal": deal, "watch": watch}


def canned_court(root: Path, tasks: Sequence[TaskSpec] = TASKS, **answers: object) -> Court:
    """A court of canned jobs with its first model and seals."""
    root.mkdir(parents=True, exist_ok=True)
    court = Court(root, canned(**answers), tasks=tasks)  # type: ignore[arg-type]
    if court.ledger.head()[0] == 0:
        for kind in ("vault", "guard", "seal"):
            (root / "made" / kind).mkdir(parents=True)
            (root / "made" / kind / "maths.json").write_text('["a"]' if kind == "seal" else kind)
        made = root / "made"
        court.begin(court.text_model("first"), made / "vault", made / "guard", made / "seal")
    return court
