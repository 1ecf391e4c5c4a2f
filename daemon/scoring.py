"""`kaizend score`: score any model folder on the configured tasks, in a worker of its own, beside or without a daemon.

Nothing durable is written: the worker runs on a throw-away state folder. Sealed items are left out of fresh ones.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from daemon.genesis import Beginnings, resolved_tasks
from daemon.places import find_config, read_places
from daemon.reports import out
from daemon.runner import LocalRunner
from daemon.settings import load_settings
from daemon.wiring import device_of
from safety.bounds import load_bounds
from safety.preflight import preflight
from safety.yardstick.compare import wilson
from state.code import code_version
from state.database import Database
from state.errors import UserError
from state.jobbook import JobBook
from state.jobs import JobFailed, JobSpec
from state.reading import Reading
from state.records import Event
from state.registry import Registry

SPLITS = ("search", "guard")


def score_model(config: Path | None, model: Path, task: str | None, split: str, count: int, as_json: bool) -> None:
    """Print accuracy with a 95 % interval per task. Raises UserError for a model or task that cannot be used."""
    places = read_places(find_config(config))
    settings = load_settings(places.config)
    if split not in SPLITS:
        raise UserError(f"--split {split}: one of {', '.join(SPLITS)} (the vault is sealed)")
    tasks = [t for t in resolved_tasks(settings, places.config.parent) if task in (None, t.name)]
    if split == "guard":
        tasks = [t for t in tasks if t.guard_items]
    if not tasks:
        raise UserError(f"--task {task}: no such task" if task else f"no task has a {split} split")
    bounds = load_bounds(places.bounds)
    problems = preflight([model], bounds)
    if problems:
        raise UserError(str(problems[0]))
    sealed = _sealed(places.database, places.state)
    if split == "guard" and "guard" not in sealed:
        raise UserError("the guard split is made at the daemon's first start: run `kaizend run` first")
    with tempfile.TemporaryDirectory(prefix="kaizend-score-") as folder:
        root = Path(folder)
        database = Database(root / "kaizend.db")
        try:
            database.migrate()
            registry = Registry(root, database)
            inputs = {"model:it": registry.add_copy(model, "model")}
            inputs |= {name: registry.add_copy(path, name) for name, path in sealed.items()}
            params = {"tasks": [t.to_json() for t in tasks], "split": split, "count": count}
            with LocalRunner(
                registry, JobBook(database), folder=root / "jobs", device=device_of(settings), threads=settings.threads,
                code=code_version(), bounds=lambda: bounds,
            ) as runner:
                values = runner.run(JobSpec("score", inputs, params, settings.seed, code_version())).values["it"]
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


def _sealed(database: Path, state: Path) -> dict[str, Path]:
    """Paths of the sealed item ids and of the guard split, where the state folder has them already."""
    if not database.is_file():
        return {}
    with Reading(database) as reading:
        rows = reading.rows(limit=1, events=[str(Event.GENESIS)])
    if not rows:
        return {}
    beginnings = Beginnings.from_json(rows[0].change)
    return {
        name: state / "artifacts" / digest[:2] / digest
        for name, digest in (("seal", beginnings.seal), ("guard", beginnings.guard))
    }
