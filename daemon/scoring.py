"""`kaizend score`: score any model folder on the configured tasks, in a worker of its own, beside or without a daemon.

Nothing durable is written: the worker runs on a throw-away state folder. Sealed items are left out of fresh ones. A
file is read only for a task that no life has begun with, by a job of its own as everywhere.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from daemon.genesis import Beginnings, began, has_pool, placed_tasks, pools_spec, same_task
from daemon.places import find_config, read_places
from daemon.reports import artefact_path, out
from daemon.runner import LocalRunner
from daemon.settings import load_settings
from daemon.wiring import device_of
from safety.bounds import load_bounds
from safety.preflight import preflight
from safety.yardstick.compare import wilson
from safety.yardstick.items import TaskSpec
from safety.yardstick.tasks import pinned, unplaced
from state.code import code_version
from state.database import Database
from state.errors import UserError
from state.jobbook import JobBook
from state.jobs import JobFailed, JobSpec
from state.registry import Registry

SPLITS = ("search", "guard")


def score_model(config: Path | None, model: Path, task: str | None, split: str, count: int, as_json: bool) -> None:
    """Print accuracy with a 95 % interval per task. Raises UserError for a model or task that cannot be used."""
    places = read_places(find_config(config))
    settings = load_settings(places.config)
    if split not in SPLITS:
        raise UserError(f"--split {split}: one of {', '.join(SPLITS)} (the vault is sealed)")
    begun = began(places.database)
    named = {"seal": begun.seal, "guard": begun.guard} if begun else {}
    sealed = {name: artefact_path(places, digest) for name, digest in named.items()}
    tasks = [
        _of_the_life(t, begun, sealed) or pinned(t) for t in placed_tasks(settings, places.config.parent)
        if task in (None, t.name)
    ]
    if split == "guard":
        tasks = [t for t in tasks if t.guard_items]
    if not tasks:
        raise UserError(f"--task {task}: no such task" if task else f"no task has a {split} split")
    bounds = load_bounds(places.bounds)
    problems = preflight([model], bounds)
    if problems:
        raise UserError(str(problems[0]))
    if split == "guard" and "guard" not in sealed:
        raise UserError("the guard split is made at the daemon's first start: run `kaizend run` first")
    with tempfile.TemporaryDirectory(prefix="kaizend-score-") as folder:
        root = Path(folder)
        database = Database(root / "kaizend.db")
        try:
            database.migrate()
            registry = Registry(root, database)
            kind, needed = ("report", "guard") if split == "guard" else ("score", "seal")
            inputs = {"model:it": registry.add_copy(model, "model")}
            inputs |= {name: registry.add_copy(path, name) for name, path in sealed.items() if name == needed}
            params = {"tasks": [unplaced(t).to_json() for t in tasks], "split": split, "count": count}
            with LocalRunner(
                registry, JobBook(database), folder=root / "jobs", device=device_of(settings), threads=settings.threads,
                code=code_version(), bounds=lambda: bounds,
            ) as runner:
                if needed == "seal" and (files := [t for t in tasks if "path" in t.source]):
                    seal = inputs.get("seal") or registry.add_copy(_nothing_sealed(root), "seal")
                    inputs |= runner.run(pools_spec(seal, files, code_version())).outputs
                values = runner.run(JobSpec(kind, inputs, params, settings.seed, code_version())).values["it"]
        except JobFailed as failure:
            raise UserError(str(failure)) from failure
        finally:
            database.close()
    for name, found in values.items():
        if "n" not in found:
            continue
        low, high = wilson(int(found["correct"]), int(found["n"]))
        if as_json:
            out({"task": name, "split": split, **found, "low": low, "high": high})
        else:
            sys.stdout.write(f"{name:<20} {found['mean']:.3f}  ({low:.3f} to {high:.3f}, {found['n']} items)\n")


def _of_the_life(task: TaskSpec, begun: Beginnings | None, sealed: Mapping[str, Path]) -> TaskSpec | None:
    """The task as the state folder began with it, where it is the same one and its items are there without its file."""
    then = next((t for t in begun.tasks if t.name == task.name), None) if begun else None
    return unplaced(then) if then and same_task(task, then) and has_pool(sealed["seal"], then) else None


def _nothing_sealed(root: Path) -> Path:
    """The seal where no life has begun: no id of any task."""
    folder = root / "seal"
    folder.mkdir()
    (folder / "none.json").write_text("[]\n")
    return folder
