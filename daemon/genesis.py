"""How a life begins: the operator's models and data enter the registry, the sealed splits are made, stable is set.

All of it is one GENESIS row, written last: a start that was cut short is made again, and what was done answers at
once. Later starts read the row, and no file of a task: its items are in the sealed splits and in the pool of the seal.
Invariants: the tasks, and with them vault and guards, are the same for a whole life; where a task's file lies is said
to the job "seal" alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final

from daemon.settings import Settings
from loops.architecture.settings import SearchKind, Space
from safety.adapters import is_adapter
from safety.admission import admit_input
from safety.bounds import Bounds
from safety.headers import facts_of
from safety.preflight import Problem, path_problems, preflight, scope_in_words
from safety.tokenizer import read_tokenizer
from safety.yardstick import training
from safety.yardstick.items import TaskError, TaskSpec
from safety.yardstick.tasks import of_a_file, pinned, pool_file, read_jsonl, unplaced
from safety.yardstick.training import Contents, RowError, contents, is_parquet
from state import given
from state.errors import ConfigurationError, UserError
from state.jobs import JobFailed, JobResult, JobSpec, Runner
from state.ledger import Ledger
from state.reading import Reading
from state.records import Actor, Channel, Entry, Event, JsonObject, Row
from state.registry import Registry

ADAPTER: Final = "adapter"


@dataclass(frozen=True, slots=True)
class Beginnings:
    """What the GENESIS row says: digests of models, data and sealed splits, and the tasks.

    `adapters` are those of `parents` that are kept as adapters over the base, `preferences` the names of the data whose
    rows are preferences. The row names the files that tasks were
    read from; what `begin` gives does not.
    """

    start: str
    base: str
    parents: tuple[str, ...]
    data: dict[str, str]
    tasks: tuple[TaskSpec, ...]
    seal: str
    guard: str
    vault: str
    adapters: tuple[str, ...] = ()
    preferences: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[TaskSpec, ...]:
        return tuple(task for task in self.tasks if task.role == "target")

    def to_json(self) -> JsonObject:
        return {
            "start": self.start, "base": self.base, "parents": list(self.parents), "data": self.data,
            "tasks": [task.to_json() for task in self.tasks], "seal": self.seal, "guard": self.guard,
            "vault": self.vault, "adapters": list(self.adapters), "preferences": list(self.preferences),
        }

    @classmethod
    def from_json(cls, body: JsonObject) -> Beginnings:
        return cls(
            body["start"], body["base"], tuple(body["parents"]), body["data"],
            tuple(TaskSpec.from_json(task) for task in body["tasks"]), body["seal"], body["guard"], body["vault"],
            tuple(body.get("adapters", ())), tuple(body.get("preferences", ())),     # earlier versions' rows have none
        )

    def data_of(self, *, preferences: bool) -> dict[str, str]:
        """The data whose rows are preferences, or the other."""
        return {name: digest for name, digest in self.data.items() if (name in self.preferences) == preferences}

    def whole(self, digest: str) -> str:
        """The model that has a model's config and tokenizer: itself, or for an adapter the base."""
        return self.base if digest in self.adapters else digest


def model_folders(settings: Settings, root: Path) -> dict[str, Path]:
    """Every model that kaizend.toml names, by what it is; adapters, which need the base, come after it."""
    models = settings.models
    return {
        "models.start": root / models.start, "models.base": root / models.base,
        **{f"models.parents[{i}]": root / parent for i, parent in enumerate(models.parents)},
    }


def in_roles(settings: Settings, root: Path) -> tuple[list[Path], list[Path]]:
    """The models that have to be whole, start and base, and the parents, which may be the language part of one, or
    adapters over the base.
    """
    models = settings.models
    return [root / models.start, root / models.base], [root / parent for parent in models.parents]


def unsearchable(settings: Settings, whole: Sequence[Path], parents: Sequence[Path]) -> Iterator[Problem]:
    """Models without a problem that the search in the configuration cannot use."""
    search, groups = settings.architecture, settings.architecture.groups
    if search.search is SearchKind.M2N2:
        text = "is a text model: a search by m2n2 crosses whole models, set architecture.search to cmaes"
        yield from (Problem(parent, "search", text) for parent in parents if scope_in_words(whole[0], parent))
    elif search.space is not Space.DATA_FLOW:
        for folder in dict.fromkeys([*whole[1:], *(parent for parent in parents if not is_adapter(parent))]):
            depth = max(1, facts_of(folder)["layers"])
            if depth < groups:
                text = f"has {depth} layers, too few for architecture.groups = {groups} blocks of them"
                yield Problem(folder, "search", text)


def model_problems(settings: Settings, root: Path, bounds: Bounds) -> list[Problem]:
    """What is wrong with the models, by their headers, for the search that is asked for."""
    whole, parents = in_roles(settings, root)
    problems = preflight(whole, bounds, parents, base=root / settings.models.base)
    if settings.architecture.space is not Space.PARAMETER:
        problems += path_problems(list(dict.fromkeys([*whole, *parents])))
    return problems or list(unsearchable(settings, whole, parents))


def begin(
    settings: Settings, root: Path, ledger: Ledger, registry: Registry, runner: Runner, bounds: Bounds, code: str
) -> Beginnings:
    """Read the GENESIS row, or make it. Raises UserError for models, data or tasks that cannot be used."""
    row = ledger.latest(Event.GENESIS)
    if row is not None:
        begun = _taken_up(settings, root, row, registry, runner, code)
        whole = dict.fromkeys(map(begun.whole, (begun.base, *begun.parents)))
        _refuse_impossible_paths(settings, [registry.path(digest) for digest in whole])
        return begun
    tasks = resolved_tasks(settings, root)
    refuse_unusable(settings, root, bounds)
    models = _models(model_folders(settings, root), registry, runner, bounds, code)
    data = {name: registry.add_copy(root / path, "data") for name, path in settings.data.items()}
    sealed = _seal(tasks, data, runner, code, settings.seed)
    beginnings = Beginnings(
        models["models.start"], models["models.base"],
        tuple(models[f"models.parents[{i}]"] for i in range(len(settings.models.parents))),
        data, tasks, sealed.outputs["seal"], sealed.outputs["guard"], sealed.outputs["vault"],
        tuple(sorted({digest for digest in models.values() if registry.kind(digest) == ADAPTER})),
        tuple(sealed.values.get("preferences", ())),
    )
    ledger.append(
        Entry(
            Event.GENESIS, "first start: models, data and sealed splits as configured", result=beginnings.start,
            change=beginnings.to_json(), actor=Actor.OPERATOR,
            evidence={"code": code, "seed": settings.seed, "named": named_in(settings)},
        ),
        move={Channel.STABLE: beginnings.start, Channel.WORKING: beginnings.start},
    )
    return replace(beginnings, tasks=tuple(map(unplaced, tasks)))


def began(database: Path) -> Beginnings | None:
    """What the GENESIS row in a database says, and the seal in use; None where no life has begun."""
    if not database.is_file():
        return None
    with Reading(database) as reading:
        rows = reading.rows(limit=1, events=[str(Event.GENESIS)])
        if not rows:
            return None
        begun = Beginnings.from_json(rows[0].change)
        seals = (artefact["digest"] for artefact in reading.artefacts() if artefact["kind"] == "seal")
        found = _with_pools(begun, seals, lambda digest: (reading.artefact(digest) or {"files": {}})["files"])
    return replace(begun, seal=found or begun.seal)


def same_task(now: TaskSpec, then: TaskSpec) -> bool:
    """Whether the task of kaizend.toml is the one of the beginning. Its file may have been changed, moved or taken away
    since; only another file with something else in it makes another task.
    """
    if _without_file(now) != _without_file(then):
        return False
    try:
        return now.source.get("path") == then.source.get("path") or _sha256(now) == then.source.get("sha256")
    except TaskError:
        return True


def changed_files(tasks: Sequence[TaskSpec], begun: Sequence[TaskSpec]) -> Iterator[str]:
    """A line for each task whose file is not any more what it was at the beginning: what is done about it."""
    for now, then in zip(tasks, begun, strict=True):
        try:
            if not of_a_file(now) or _sha256(now) == then.source["sha256"]:
                continue
            what = f"{now.source['path']} has changed"
        except TaskError as error:
            what = str(error)
        yield (
            f"task {now.name}: {what}, which changes nothing here: its items stay those that this state folder began "
            "with (new ones need a new state folder, service.state)"
        )


def refuse_unusable(settings: Settings, root: Path, bounds: Bounds) -> None:
    """Raise UserError for models, data and tasks that cannot be used, as far as that shows without a worker."""
    problems = model_problems(settings, root, bounds)
    if problems:
        more = f" ({len(problems) - 1} more: see `kaizend check`)" if problems[1:] else ""
        raise UserError(f"{problems[0]}{more}")
    for name, path in settings.data.items():
        if not given.is_file(root / path):
            raise UserError(f"data.{name}: {root / path} is not a file")
        try:
            if problem := data_problem(contents_of(root / path), root / settings.models.base):
                raise UserError(f"data.{name}: {root / path} {problem}")
        except RowError as error:
            raise UserError(f"data.{name}: {error}") from error
    for task in resolved_tasks(settings, root):
        if of_a_file(task):
            read_jsonl(Path(task.source["path"]))


def contents_of(file: Path) -> Contents:
    """What a file of training data holds; of Parquet another process says it. Raises RowError."""
    if not is_parquet(file):
        return contents(file)
    done = subprocess.run(
        [sys.executable, "-m", training.__name__, str(file.absolute())], capture_output=True, text=True, check=False,
        cwd=Path(__file__).resolve().parent.parent, stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"{file.name}: reading it ended with {done.returncode}"]
        raise RowError(said[0])
    return Contents(**json.loads(done.stdout))


def data_problem(found: Contents, base: Path) -> str | None:
    """Why readable data cannot be trained on."""
    if not found.rows:
        return "has no rows"
    if found.conversations and not read_tokenizer(base).template:
        return f"has conversations, and the model {base} no chat template to write them in"
    return None


def _refuse_impossible_paths(settings: Settings, folders: list[Path]) -> None:
    """A life may be told to search paths long after it began with models that none can be laid through."""
    problems = path_problems(folders) if settings.architecture.space is not Space.PARAMETER else []
    if problems:
        raise ConfigurationError(f"architecture.space: {problems[0]}")


def named_in(settings: Settings) -> JsonObject:
    """What kaizend.toml calls the models and the data, section by section."""
    return {"models": settings.models.model_dump(mode="json"), "data": settings.data}


def placed_tasks(settings: Settings, root: Path) -> tuple[TaskSpec, ...]:
    """The tasks with the paths of their files absolute. No file is read."""
    return tuple(
        replace(task, source={**task.source, "path": str(_resolved(root / task.source["path"]))})
        if of_a_file(task) else task
        for task in settings.task_specs()
    )


def resolved_tasks(settings: Settings, root: Path) -> tuple[TaskSpec, ...]:
    """The tasks with the paths of their files absolute and their contents pinned by digest. Raises TaskError."""
    return tuple(pinned(task) for task in placed_tasks(settings, root))


def has_pool(seal: Path, task: TaskSpec) -> bool:
    """Whether a seal has what search draws of a task need."""
    return not of_a_file(task) or pool_file(seal, task.name).is_file()


def _taken_up(
    settings: Settings, root: Path, row: Row, registry: Registry, runner: Runner, code: str
) -> Beginnings:
    """The beginnings of a life that goes on. Raises ConfigurationError where kaizend.toml is about another one."""
    begun, named, tasks = Beginnings.from_json(row.change), row.evidence["named"], placed_tasks(settings, root)
    same = {section: names == named[section] for section, names in named_in(settings).items()}
    same["tasks"] = len(tasks) == len(begun.tasks) and all(map(same_task, tasks, begun.tasks))
    for what in ("tasks", "models", "data"):
        if not same[what]:
            raise ConfigurationError(
                f"the {what} of kaizend.toml are not those this state folder began with: put them back, or begin "
                "a new state folder with service.state"
            )
    seals = (digest for digest in registry.digests() if registry.kind(digest) == "seal")
    seal = _with_pools(begun, seals, registry.files)
    if seal is None:
        files = [_as_it_was(now, then) for now, then in zip(tasks, begun.tasks, strict=True) if of_a_file(then)]
        seal = _run(runner, pools_spec(begun.seal, files, code)).outputs["seal"]
    return replace(begun, seal=seal, tasks=tuple(map(unplaced, begun.tasks)))


def _with_pools(begun: Beginnings, seals: Iterable[str], files_of: Callable[[str], Mapping[str, str]]) -> str | None:
    """The seal of a life; where an earlier version began it, the one that was made of that with the pools, if any."""
    pools = {pool_file(Path(), task.name).name for task in begun.tasks if of_a_file(task)}
    if not pools:
        return begun.seal
    own = files_of(begun.seal)
    held = ((digest, files_of(digest)) for digest in chain([begun.seal], seals))
    return next((digest for digest, files in held if pools <= files.keys() and files.items() >= own.items()), None)


def pools_spec(seal: str, tasks: Sequence[TaskSpec], code: str) -> JobSpec:
    """The job that reads the files of some tasks and adds their pools to a seal."""
    return JobSpec("seal", {"seal": seal}, {"tasks": [task.to_json() for task in tasks]}, 0, code)


def _as_it_was(now: TaskSpec, then: TaskSpec) -> TaskSpec:
    """The task with its file, from which an earlier version of the program left no pool. Raises ConfigurationError."""
    try:
        found = pinned(now)
        what = f"{now.source['path']} has changed" if found.source["sha256"] != then.source["sha256"] else ""
    except TaskError as error:
        what = str(error)
    if what:
        raise ConfigurationError(
            f"task {now.name}: {what}, but an earlier version of kaizend began this state folder and left no pool "
            "of it for the search: put the file back as it was for one start"
        )
    return found


def _without_file(task: TaskSpec) -> JsonObject:
    body = task.to_json()
    return {**body, "source": {key: value for key, value in body["source"].items() if key not in ("path", "sha256")}}


def _sha256(task: TaskSpec) -> str:
    return str(pinned(task).source["sha256"])


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
        kind = ADAPTER if is_adapter(folder) else "model"
        digest = registry.add_copy(folder, kind)
        over = {"like": kept[folders["models.base"]]} if kind == ADAPTER else {}
        refusal = admit_input(bounds, digest) or bounds.accept(
            _run(runner, JobSpec("measure", {"result": digest, **over}, {}, 0, code)).values["model"]
        )
        if refusal:
            registry.remove(digest)
            raise UserError(f"{folder}: {refusal}")
        kept[folder] = digest
    return {name: kept[folder] for name, folder in folders.items()}


def _seal(tasks: tuple[TaskSpec, ...], data: dict[str, str], runner: Runner, code: str, seed: int) -> JobResult:
    spec = JobSpec(
        "seal", {f"data:{name}": digest for name, digest in data.items()},
        {"tasks": [task.to_json() for task in tasks]}, seed, code,
    )
    return _run(runner, spec)


def _run(runner: Runner, spec: JobSpec) -> JobResult:
    try:
        return runner.run(spec)
    except JobFailed as failure:
        raise UserError(str(failure)) from failure
