"""`kaizend check`: is everything ready for a start? Files and headers only; no weight is read, nothing is changed."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from daemon.energy import energy_in_words
from daemon.genesis import (
    began,
    changed_files,
    contents_of,
    data_problem,
    has_pool,
    in_roles,
    model_folders,
    model_problems,
    placed_tasks,
    same_task,
)
from daemon.places import Places, find_config, read_places
from daemon.reports import artefact_path, out
from daemon.settings import Settings, load_settings
from daemon.wiring import device_of
from loops.architecture.loop import KEEP
from loops.architecture.paths import PATH
from loops.architecture.settings import SearchKind, Space
from loops.reward import catalogue
from loops.reward.catalogue import sources
from loops.reward.features import LEARNED
from loops.reward.levels import at_level, configs_of
from safety.bounds import Bounds, load_bounds
from safety.gate import Procedure, Rules, fewest_guard_items, smallest_gain
from safety.headers import HeaderError
from safety.licences import licences_of
from safety.preflight import adapter_in_words, rotary_in_words, scope_in_words
from safety.sandbox import Limits, exposed, statements
from safety.yardstick.fresh import can_deal
from safety.yardstick.items import TaskError, TaskSpec
from safety.yardstick.tasks import draw_some, of_a_file, read_jsonl
from safety.yardstick.training import RowError
from safety.yardstick.verifiers import FIRST_ITEMS, junk_paid
from state import given
from state.code import MISSING, PACKAGES, ROOT, digests_of
from state.errors import UserError, one_line
from state.reading import Reading
from state.records import Event, Verdict

FEATURE_SECONDS = 60
Finding = tuple[str, bool, str]          # what was looked at, whether it is as it must be, in words


def run_checkup(config: Path | None, as_json: bool) -> int:
    """Print every finding. Returns 0 when all is well and 2 when something needs a person."""
    places = read_places(find_config(config))
    settings, bounds = load_settings(places.config), load_bounds(places.bounds)
    root = places.config.parent
    tasks = settings.task_specs()
    found: list[Finding] = [
        ("configuration", True, str(places.config)), ("bounds", True, str(places.bounds)),
        *_packages(), *_models(settings, root, bounds), *_data(settings, root),
        *_sources(settings, places),
        *_verifiers(settings, places), *_levels(settings, tasks), *_features(settings, bounds),
        *_stages(settings, bounds), *_operators(settings, bounds),
        *_tasks(tasks, bounds), *_searched_guards(settings, places),
        *_protected(bounds), *_gate(tasks, bounds, places.database), *_watch(tasks, bounds),
        *_host(settings, places, bounds), *_sandbox(settings, places.state, bounds),
    ]
    found = [(what, well, one_line(text)) for what, well, text in found]
    fine = all(well for _, well, _ in found)
    if as_json:
        out({"ready": fine, "findings": [{"what": what, "ok": well, "text": text} for what, well, text in found]})
    words = sys.stderr if as_json else sys.stdout
    for what, well, text in found:
        words.write(f"{'ok     ' if well else 'PROBLEM'} {what:<16} {text}\n")
    return 0 if fine else 2


def _packages() -> Iterator[Finding]:
    """Each of the four short package names must come from this checkout."""
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        place = Path(str(importlib.import_module(name).__file__)).resolve()
        if home not in place.parents:
            yield "packages", False, f"package {name!r} comes from {place.parent}: run kaizend in its own environment"
            return
    yield "packages", True, f"{', '.join(PACKAGES)} come from {home}"


def _models(settings: Settings, root: Path, bounds: Bounds) -> Iterator[Finding]:
    folders, (whole, _) = model_folders(settings, root), in_roles(settings, root)
    problems = model_problems(settings, root, bounds)
    for problem in problems:
        yield f"model {problem.check}", False, str(problem)
    if not problems:
        for name, folder in folders.items():
            base = root / settings.models.base
            said = (scope_in_words(whole[0], folder) or adapter_in_words(base, folder), rotary_in_words(base, folder))
            more = "; ".join(filter(None, said))
            yield "model", True, f"{name}: {folder} ({', '.join(licences_of(folder))})" + (f": {more}" if more else "")


def _data(settings: Settings, root: Path) -> Iterator[Finding]:
    for name, path in settings.data.items():
        file = root / path
        if not given.is_file(file):
            yield "data", False, f"data.{name}: {file} is not a file"
            continue
        try:
            found = contents_of(file)
            problem = data_problem(found, root / settings.models.base)
        except (RowError, HeaderError) as error:
            yield "data", False, f"data.{name}: {error}"
            continue
        what = "preferences" if found.preferences else "rows"
        yield "data", problem is None, f"data.{name}: " + (
            f"{file} {problem}" if problem else
            f"{found.rows:,} {what} in {file} (overlap with sealed items is checked when they are drawn)"
        )


def _sources(settings: Settings, places: Places) -> Iterator[Finding]:
    """The files that tasks read their items from: at the first start, and never again."""
    try:
        life = began(places.database)
        seal = artefact_path(places, life.seal) if life else Path()
        begun = {task.name: task for task in life.tasks if has_pool(seal, task)} if life else {}
        for task in filter(of_a_file, placed_tasks(settings, places.config.parent)):
            yield _source(task, begun.get(task.name))
    except UserError as error:
        yield "task", False, str(error)


def _source(task: TaskSpec, then: TaskSpec | None) -> Finding:
    """What is to be said of one file, `then` being the task of that name in the life that has begun."""
    file = Path(task.source["path"])
    if given.is_file(file) and (inside := exposed(file)):
        return "task", False, f"{task.name}: {file} lies below {inside}, which workers read: put it elsewhere"
    if then is not None and same_task(task, then):
        return "task", True, next(changed_files([task], [then]), f"{task.name}: its items were taken from {file}")
    try:
        return "task", True, f"{task.name}: {len(read_jsonl(file))} items in {file}"
    except TaskError as error:
        return "task", False, f"{task.name}: {error}"


def _verifiers(settings: Settings, places: Places) -> Iterator[Finding]:
    """Before a first start: whether a verifier takes junk for right."""
    if places.database.is_file():
        return
    try:
        tasks = placed_tasks(settings, places.config.parent)
    except UserError:
        return                                                  # `_sources` says what is wrong with the path
    for task in tasks:
        try:
            items = read_jsonl(Path(task.source["path"])) if of_a_file(task) else draw_some(task, FIRST_ITEMS, 0)
        except TaskError as error:
            if not of_a_file(task):                             # of files `_sources` says it, too
                yield "verifier", False, f"{task.name}: {error}"
            continue
        tried = min(len(items), FIRST_ITEMS)
        problem = junk_paid(task, items)
        second = f", and so does {task.second_verifier}" if task.second_verifier else ""
        yield "verifier", problem is None, problem or (
            f"{task.name}: {task.verifier} is right about the references of {tried} items, and pays for no junk{second}"
        )


def _levels(settings: Settings, tasks: tuple[TaskSpec, ...]) -> Iterator[Finding]:
    """Whether the levels of difficulty can be asked, and what the verifiers say to junk there."""
    for task in tasks:
        listed = settings.reward.levels.get(task.name, ())
        for number, config in enumerate(configs_of(task.to_json(), listed)[:-1], start=1):
            what = f"level {number} of {len(listed) + 1}"
            try:
                level = at_level(task, config)
                problem = junk_paid(level, draw_some(level, FIRST_ITEMS, 0))
            except TaskError as error:
                yield "level", False, f"{task.name}, {what}: {error}"
                continue
            yield "level", problem is None, f"{what}: {problem}" if problem else f"{task.name}, {what}: can be asked"


def _features(settings: Settings, bounds: Bounds) -> Iterator[Finding]:
    """The learned feature, and those that other packages bring: imported and tried out in a process of their own."""
    if settings.reward.learned and LEARNED not in bounds.reward.features:
        yield "feature", False, f"{LEARNED}: reward.features in bounds.toml does not allow it"
    for name, source in sources(settings.reward.allowed).items():
        if name not in bounds.reward.features:
            yield "feature", False, f"{name} of {source}: reward.features in bounds.toml does not allow it"
            continue
        try:
            done = subprocess.run(
                [sys.executable, "-m", catalogue.__name__, name], cwd=Path(__file__).resolve().parent.parent,
                capture_output=True, text=True, timeout=FEATURE_SECONDS, check=False, stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            yield "feature", False, f"{name} of {source}: trying it out took more than {FEATURE_SECONDS} s"
            continue
        fit = done.returncode == 0 and done.stdout.splitlines()[-1:] == [name]
        said = done.stderr.strip().splitlines()[-1:] or [f"it ended the process with {done.returncode}"]
        yield "feature", fit, f"{name} of {source}" + ("" if fit else f": {said[0]}")


def _stages(settings: Settings, bounds: Bounds) -> Iterator[Finding]:
    """Stages of training that the bounds refuse would be proposed in vain."""
    for stage in settings.pipeline.stages:
        if stage not in bounds.pipeline.stages:
            yield "stage", False, f"{stage}: pipeline.stages in bounds.toml does not allow it"


def _operators(settings: Settings, bounds: Bounds) -> Iterator[Finding]:
    """The same of what makes a candidate, and of more parents than one may have."""
    search, limits = settings.architecture, bounds.search
    merging = search.space is not Space.DATA_FLOW
    asked = ["crossover"] if search.search is SearchKind.M2N2 else search.operators
    for name in [*(asked if merging else ()), *([PATH] if search.space is not Space.PARAMETER else ()), KEEP]:
        if name not in limits.operators:
            yield "operator", False, f"{name}: search.operators in bounds.toml does not allow it"
    parents = len(dict.fromkeys(settings.models.parents))
    if merging and search.search is not SearchKind.M2N2 and parents > limits.max_parents:
        yield "operator", False, f"{parents} parents: search.max_parents in bounds.toml allows {limits.max_parents}"


def _tasks(tasks: tuple[TaskSpec, ...], bounds: Bounds) -> Iterator[Finding]:
    """Whether the guards can pass at all, and every margin has its guard."""
    for name in sorted(bounds.guards.margins.keys() - {task.name for task in tasks if task.role == "guard"}):
        yield "guard", False, f"{name}: guards.margins in bounds.toml names it, and there is no guard task of this name"
    for task in tasks:
        if task.role != "guard":
            continue
        needed = fewest_guard_items(bounds.guards.of(task.name))
        yield "guard", task.guard_items >= needed, (
            f"{task.name}: {task.guard_items} items, at least {needed} are needed for a margin of "
            f"{bounds.guards.of(task.name):g}"
        )


def _protected(bounds: Bounds) -> Iterator[Finding]:
    """Whether everything that code.modules names is there to be protected."""
    for name, digest in digests_of(ROOT, bounds.code.modules).items():
        if digest == MISSING:
            yield "protected", False, f"{name}: code.modules in bounds.toml names it, and no source file is there"


def _searched_guards(settings: Settings, places: Places) -> Iterator[Finding]:
    """Before a first start: whether sealing will leave a guard's file items for a search that looks at its guards."""
    wanted = settings.architecture.guard_items
    if not wanted or places.database.is_file():
        return
    try:
        for task in filter(of_a_file, placed_tasks(settings, places.config.parent)):
            if task.role == "guard":
                items = {item.id for item in read_jsonl(Path(task.source["path"]))}
                left = max(0, len(items) - task.vault_items - task.guard_items)
                yield "guard", left > 0, (
                    f"{task.name}: {left} items of its file stay for the search, which asks for {wanted} at a look"
                )
    except UserError:
        return                                                  # `_sources` says what is wrong with the file


def _gate(tasks: tuple[TaskSpec, ...], bounds: Bounds, database: Path) -> Iterator[Finding]:
    """What the vault can show: the smallest gain at the first, the tenth, the hundredth and the next nomination."""
    vault = sum(task.vault_items for task in tasks if task.role == "target")
    if not vault:
        yield "vault", False, "no target task has vault_items: nothing could ever be released"
        return
    asked, releases = _so_far(database)
    for k in sorted({1, 10, 100, asked + 1}):
        rules = Rules(
            k, bounds.gate.alpha, bounds.gate.d0, bounds.gate.least_gain, {}, Procedure(bounds.gate.procedure),
            min(releases, k - 1),
        )
        gain = smallest_gain(vault, rules.alpha_k)
        text = f"{100 * (gain + rules.d0):.1f} points" if gain else "none: more vault_items are needed"
        which = f"{k}, the next" if k == asked + 1 else str(k)
        yield "vault", gain is not None or k == 100, (
            f"smallest gain that {vault} items show at nomination {which}, tested at {rules.alpha_k:.2g}: {text}"
        )
    if bounds.gate.items == "fresh":
        for task in tasks:
            if task.role == "target" and task.vault_items:
                yield "fresh items", True, f"{task.name}: " + (
                    "dealt for each nomination" if can_deal(task) else "not possible from a file: judged on its vault"
                )


def _so_far(database: Path) -> tuple[int, int]:
    """Nominations asked and releases made, where a life has begun."""
    if not database.is_file():
        return 0, 0
    with Reading(database) as reading:
        asked = int(reading.counts()["events"].get(str(Event.NOMINATED), 0))
        if not asked:
            return 0, 0
        released = reading.rows(limit=asked, verdict=str(Verdict.PROMOTED), events=[str(Event.RELEASE)])
        return asked, len(released)


def _watch(tasks: tuple[TaskSpec, ...], bounds: Bounds) -> Iterator[Finding]:
    """What the watch after a release can find, and for which tasks none is possible."""
    if not bounds.gate.watch_items:
        yield "watch", True, "none: gate.watch_items is 0"
        return
    judged = [task for task in tasks if task.vault_items or task.guard_items]
    watched = [task for task in judged if can_deal(task)]
    for task in judged:
        if task not in watched:
            yield "watch", True, f"{task.name}: a file holds no new items, so no watch is possible for it"
    groups = len([task for task in watched if task.role == "guard"]) + any(task.role == "target" for task in watched)
    if groups:
        loss = smallest_gain(bounds.gate.watch_items, bounds.gate.watch_alpha / groups)
        text = f"{100 * loss:.1f} points" if loss else "none: more gate.watch_items are needed"
        yield "watch", True, f"smallest loss that {bounds.gate.watch_items} new items show after a release: {text}"


def _host(settings: Settings, places: Places, bounds: Bounds) -> Iterator[Finding]:
    state = places.state
    existing = next(folder for folder in (state, *state.parents) if given.is_file(folder) or given.is_folder(folder))
    free, needed = shutil.disk_usage(existing).free / 2**30, bounds.resources.min_disk_free_gib
    room = 0.0 if places.database.is_file() else _first_start_gib(settings, places.config.parent)
    also = f", and {room:.1f} GiB are for the copies of the models and one candidate" if room else ""
    yield "disk", free >= needed + room, f"{free:.1f} GiB free for {state}, {needed:g} must remain{also}"
    yield "energy", True, energy_in_words(device_of(settings))
    yield "device", True, f"{device_of(settings)}, {settings.service.workers} workers of {settings.threads} threads"


def _first_start_gib(settings: Settings, root: Path) -> float:
    """What the first start copies into the state folder, and a candidate as large as the base beside it, in GiB."""
    folders, base = set(model_folders(settings, root).values()), root / settings.models.base
    sizes = {folder: sum(_size(file) for file in folder.glob("*")) for folder in folders if given.is_folder(folder)}
    return float(sum(sizes.values()) + sizes.get(base, 0)) / 2**30


def _size(file: Path) -> int:
    return file.stat().st_size if given.is_file(file) else 0


def _sandbox(settings: Settings, state: Path, bounds: Bounds) -> Iterator[Finding]:
    """What a worker's sandbox holds on this host, tried out. A missing part is a problem only where it is required."""
    limits = Limits.of(bounds)
    where = ", here; the worker unit has limits of its own besides" if settings.service.nursery else ""
    for part, holds, words in statements(limits, state):
        yield "sandbox", holds or not limits.required, f"{part}: {words}{where}"
