"""How a life begins: the operator's models and data enter the registry, the sealed splits are made, stable is set.

All of it is one GENESIS row, written last: a start that was cut short is made again, and what was done answers at
once. Later starts read the row. Invariant: the tasks, and with them vault and guards, are the same for a whole life.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from daemon.settings import Settings
from loops.architecture.settings import Space
from safety.admission import admit_input
from safety.bounds import Bounds
from safety.preflight import Problem, path_problems, preflight
from safety.yardstick.items import TaskSpec
from safety.yardstick.tasks import pinned, read_jsonl
from state import given
from state.errors import ConfigurationError, UserError
from state.jobs import JobFailed, JobResult, JobSpec, Runner
from state.ledger import Ledger
from state.records import Actor, Channel, Entry, Event, JsonObject
from state.registry import Registry


@dataclass(frozen=True, slots=True)
class Beginnings:
    """What the GENESIS row says: digests of models, data and sealed splits, and the tasks."""

    start: str
    base: str
    parents: tuple[str, ...]
    data: dict[str, str]
    tasks: tuple[TaskSpec, ...]
    seal: str
    guard: str
    vault: str

    @property
    def targets(self) -> tuple[TaskSpec, ...]:
        return tuple(task for task in self.tasks if task.role == "target")

    def to_json(self) -> JsonObject:
        return {
            "start": self.start, "base": self.base, "parents": list(self.parents), "data": self.data,
            "tasks": [task.to_json() for task in self.tasks], "seal": self.seal, "guard": self.guard,
            "vault": self.vault,
        }

    @classmethod
    def from_json(cls, body: JsonObject) -> Beginnings:
        return cls(
            body["start"], body["base"], tuple(body["parents"]), body["data"],
            tuple(TaskSpec.from_json(task) for task in body["tasks"]), body["seal"], body["guard"], body["vault"],
        )


def model_folders(settings: Settings, root: Path) -> dict[str, Path]:
    """Every model that kaizend.toml names, by what it is."""
    models = settings.models
    return {
        "models.start": root / models.start, "models.base": root / models.base,
        **{f"models.parents[{i}]": root / parent for i, parent in enumerate(models.parents)},
    }


def model_problems(settings: Settings, root: Path, bounds: Bounds) -> list[Problem]:
    """What is wrong with the models, by their headers, for the search that is asked for."""
    folders = list(dict.fromkeys(model_folders(settings, root).values()))
    problems = preflight(folders, bounds)
    return problems if settings.architecture.space is Space.PARAMETER else [*problems, *path_problems(folders)]


def begin(
    settings: Settings, root: Path, ledger: Ledger, registry: Registry, runner: Runner, bounds: Bounds, code: str
) -> Beginnings:
    """Read the GENESIS row, or make it. Raises UserError for models, data or tasks that cannot be used."""
    tasks = resolved_tasks(settings, root)
    row = ledger.latest(Event.GENESIS)
    if row is not None:
        beginnings = Beginnings.from_json(row.change)
        named = row.evidence["named"]
        for what, now, then in (
            ("tasks", [unplaced(task) for task in tasks], [unplaced(task) for task in beginnings.tasks]),
            *((section, names, named[section]) for section, names in named_in(settings).items()),
        ):
            if now != then:
                raise ConfigurationError(
                    f"the {what} of kaizend.toml are not those this state folder began with: put them back, or begin "
                    "a new state folder with service.state"
                )
        return replace(beginnings, tasks=tasks)
    refuse_unusable(settings, root, bounds)
    models = _models(model_folders(settings, root), registry, runner, bounds, code)
    data = {name: registry.add_copy(root / path, "data") for name, path in settings.data.items()}
    sealed = _seal(tasks, data, runner, code, settings.seed)
    beginnings = Beginnings(
        models["models.start"], models["models.base"],
        tuple(models[f"models.parents[{i}]"] for i in range(len(settings.models.parents))),
        data, tasks, sealed["seal"], sealed["guard"], sealed["vault"],
    )
    ledger.append(
        Entry(
            Event.GENESIS, "first start: models, data and sealed splits as configured", result=beginnings.start,
            change=beginnings.to_json(), actor=Actor.OPERATOR,
            evidence={"code": code, "seed": settings.seed, "named": named_in(settings)},
        ),
        move={Channel.STABLE: beginnings.start, Channel.WORKING: beginnings.start},
    )
    return beginnings


def refuse_unusable(settings: Settings, root: Path, bounds: Bounds) -> None:
    """Raise UserError for models, data and tasks that cannot be used, as far as that shows without a worker."""
    problems = model_problems(settings, root, bounds)
    if problems:
        more = f" ({len(problems) - 1} more: see `kaizend check`)" if problems[1:] else ""
        raise UserError(f"{problems[0]}{more}")
    for name, path in settings.data.items():
        if not given.is_file(root / path):
            raise UserError(f"data.{name}: {root / path} is not a file")
    for task in resolved_tasks(settings, root):
        if task.source["kind"] == "jsonl":
            read_jsonl(Path(task.source["path"]))


def named_in(settings: Settings) -> JsonObject:
    """What kaizend.toml calls the models and the data, section by section."""
    return {"models": settings.models.model_dump(mode="json"), "data": settings.data}


def unplaced(task: TaskSpec) -> JsonObject:
    """A task without the place of its file, which may move; what is in it is pinned by digest."""
    body = task.to_json()
    return {**body, "source": {key: value for key, value in body["source"].items() if key != "path"}}


def resolved_tasks(settings: Settings, root: Path) -> tuple[TaskSpec, ...]:
    """The tasks with the paths of their files absolute and their contents pinned by digest."""
    resolved = []
    for task in settings.tasks:
        source = dict(task.get("source", {}))
        if "path" in source:
            source["path"] = str(_resolved(root / str(source["path"])))
        resolved.append(pinned(TaskSpec.from_json({**task, "source": source})))
    return tuple(resolved)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:                # links in a circle, a name that cannot be
        raise UserError(f"tasks: {path} cannot be read: {error}") from error


def _models(
    folders: dict[str, Path], registry: Registry, runner: Runner, bounds: Bounds, code: str
) -> dict[str, str]:
    """Digests of the operator's models, once every weight was looked at. One that cannot be used is not kept."""
    kept: dict[Path, str] = {}
    for folder in dict.fromkeys(folders.values()):
        digest = registry.add_copy(folder, "model")
        refusal = admit_input(bounds, digest) or bounds.accept(
            _run(runner, JobSpec("measure", {"result": digest}, {}, 0, code)).values["model"]
        )
        if refusal:
            registry.remove(digest)
            raise UserError(f"{folder}: {refusal}")
        kept[folder] = digest
    return {name: kept[folder] for name, folder in folders.items()}


def _seal(tasks: tuple[TaskSpec, ...], data: dict[str, str], runner: Runner, code: str, seed: int) -> dict[str, str]:
    spec = JobSpec(
        "seal", {f"data:{name}": digest for name, digest in data.items()},
        {"tasks": [task.to_json() for task in tasks]}, seed, code,
    )
    return dict(_run(runner, spec).outputs)


def _run(runner: Runner, spec: JobSpec) -> JobResult:
    try:
        return runner.run(spec)
    except JobFailed as failure:
        raise UserError(str(failure)) from failure
