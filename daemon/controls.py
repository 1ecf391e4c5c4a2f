"""The demo's table: the models of the run beside the honest controls, on fresh items, on the vault and on the guards.

Controls are jobs like any other, made after the loops have stopped, so that nothing they say reaches a proposal:

- random search: as many random genotypes as the search had candidates, under the same warm start;
- the same training without the merge: every training job behind the final model again, from the better parent;
- replay without reinforcement: the cross-entropy on the sources alone, for as many steps as reinforcement took.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from rich.box import SIMPLE
from rich.table import Table as Grid

from daemon.wiring import Works
from loops.architecture.genome import Definition, Operator
from safety.eprocess import EProcess
from state.jobs import JobFailed, JobSpec
from state.records import Channel, Event, JsonObject, LoopName, Row, Split, Verdict

FRESH_ITEMS = 2000
REPLAY_ROWS = 48


@dataclass(frozen=True, slots=True)
class Table:
    """Scores by model and column, each {"mean", "low", "high", "n"}, and the releases."""

    scores: Mapping[str, Mapping[str, JsonObject]]
    columns: tuple[str, ...]
    releases: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def release(self) -> int | None:
        """The row of the last release."""
        return next((row.id for row in reversed(self.releases) if row.verdict == Verdict.PROMOTED), None)

    def rendered(self) -> Grid:
        """The scores: one row a model, one column a task and split."""
        title = "accuracy in percent, with half the width of a 95 % interval"
        grid = Grid(title=title, title_justify="left", box=SIMPLE)
        grid.add_column("model", no_wrap=True)
        for column in self.columns:
            grid.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
        for name, found in self.scores.items():
            cells = [_cell(found[column]) if column in found else "" for column in self.columns]
            grid.add_row(name, *cells, style="bold" if name == "stable" else "")
        return grid

    def remarks(self) -> Iterator[str]:
        """The gate's answers, and which controls could not be made."""
        for row in self.releases:
            yield f"nomination {row.evidence['k']} (row {row.id}): {row.verdict}, {row.reason}"
        yield from self.notes


def _cell(score: JsonObject) -> str:
    return f"{100 * score['mean']:.1f}±{50 * (score['high'] - score['low']):.1f}"


def table_of(works: Works) -> Table:
    """Make the controls and score everything. A control that cannot be made is left out and says so."""
    models, notes = _models(works), []
    for name, make in (
        ("random search", _random_search), ("training, no merge", _without_merge),
        ("replay only", _replay_alone),
    ):
        try:
            made = make(works)
        except JobFailed as failure:
            made, failed = None, str(failure)
            notes.append(f"{name}: {failed}")
        if made:
            models[name] = made
    order = ["working", "stable"]
    models = {name: digest for name, digest in models.items() if name not in order} | {n: models[n] for n in order}
    scores, columns = _scores(works, models)
    releases = tuple(works.ledger.rows(event=Event.RELEASE))
    return Table(scores, columns, releases, (_against_the_better_parent(works), *notes))


def _models(works: Works) -> dict[str, str]:
    """What the run itself made or was given."""
    begun, ledger = works.beginnings, works.ledger
    names = [parent.rsplit("/", 1)[-1] for parent in works.settings.models.parents]
    working, stable = ledger.channel(Channel.WORKING), ledger.channel(Channel.STABLE)
    assert working and stable
    models = {"base": begun.base, **dict(zip(names, begun.parents, strict=True))}
    share = 1.0 / len(begun.parents)
    definition = Definition(Operator.LINEAR, begun.base, begun.parents)
    models["uniform average"] = _built(works, definition.change([share] * definition.dimensions))
    if merged := merge_alone(works):
        models["merge alone"] = merged
    return {**models, "working": working, "stable": stable}


def merge_alone(works: Works) -> str | None:
    """The last merge that became working before any training was promoted."""
    found = None
    for row in _architecture_rows(works):
        if row.change["kind"] == "keep" and row.verdict == Verdict.PROMOTED:
            break
        if row.verdict == Verdict.PROMOTED:
            found = row.result
    return found


def _architecture_rows(works: Works) -> Iterator[Row]:
    return (row for row in works.ledger.rows(event=Event.CLOSED) if row.loop == LoopName.ARCHITECTURE)


def _built(works: Works, change: JsonObject) -> str:
    inputs = {f"model:{digest}": digest for digest in {*change["parents"], change["base"]}}
    change = {key: value for key, value in change.items() if key != "search"}
    return works.runner.run(JobSpec("build", inputs, {"change": change}, 0, works.house.code)).outputs["model"]


def _random_search(works: Works) -> str | None:
    begun, settings = works.beginnings, works.settings.architecture
    count = 0
    for row in _architecture_rows(works):
        if row.change["kind"] == "keep":
            break
        count += 1
    if not count:
        return None
    start = begun.start
    inputs = {f"model:{digest}": digest for digest in {begun.base, *begun.parents, start}} | {"seal": begun.seal}
    names = ("operators", "groups", "coarse_proposals", "mean", "sigma", "fine_sigma", "fitness_items", "fresh_items")
    values = {name: getattr(settings, name) for name in names} | {"seed": works.settings.seed}
    params = {
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}, "base": begun.base,
        "parents": list(begun.parents), "incumbent": start, "tasks": [task.to_json() for task in begun.targets],
        "count": count, "final_seed": works.settings.seed + 1, "batch": settings.score_batch,
    }
    found = works.runner.run(JobSpec("random_search", inputs, params, works.settings.seed, works.house.code))
    return _built(works, found.values["change"])


def training_of(works: Works, model: str) -> list[JobSpec]:
    """The training jobs behind a model as they were carried out, the first one first; merges in between are passed
    through.
    """
    chain: list[JobSpec] = []
    spec = works.jobbook.maker(model)
    while spec is not None:
        if spec.kind == "build":
            makers = [works.jobbook.maker(digest) for digest in sorted(spec.inputs.values(), reverse=True)]
            spec = next((maker for maker in makers if maker), None)
            continue
        chain.insert(0, _carried_out(works, spec))
        spec = works.jobbook.maker(spec.inputs["model"])
    return chain


def _carried_out(works: Works, spec: JobSpec) -> JobSpec:
    """The same training without a cap on tokens and in one go, asked for the steps that were done."""
    result = works.jobbook.told(spec.digest)
    assert result is not None
    params, done = {name: value for name, value in spec.params.items() if name != "max_tokens"}, result.values["steps"]
    if spec.kind == "segment":
        inputs = {name: digest for name, digest in spec.inputs.items() if name != "paused"}
        return replace(spec, inputs=inputs, params={**params, "steps": done, "pause": None})
    return replace(spec, params={**params, "to_step": params["from_step"] + done})


def better_parent(works: Works) -> str:
    """The parent that is best on the targets, by fresh items."""
    begun = works.beginnings
    scores, _ = _search_scores(works, {digest: digest for digest in begun.parents})
    return max(begun.parents, key=lambda digest: sum(found["mean"] for found in scores[digest].values()))


def _against_the_better_parent(works: Works) -> str:
    """Stable beside the better parent, item by item on the whole vault: the gain and its e-value."""
    begun, stable, parent = works.beginnings, works.ledger.channel(Channel.STABLE), better_parent(works)
    assert stable
    inputs = {"model:new": stable, "model:old": parent, "vault": begun.vault}
    params = {"tasks": [task.to_json() for task in begun.targets], "split": str(Split.VAULT)}
    result = works.runner.run(JobSpec("report", inputs, params, works.settings.seed, works.house.code))
    kept = works.registry.path(result.outputs["scores"])
    scores = json.loads((kept if kept.is_file() else next(kept.glob("*.json"))).read_text())
    new, old = ([score for task in scores[name].values() for score in task["scores"]] for name in ("new", "old"))
    process = EProcess()
    process.extend(a - b for a, b in zip(new, old, strict=True))
    name = works.settings.models.parents[begun.parents.index(parent)].rsplit("/", 1)[-1]
    gain = 100 * (sum(new) - sum(old)) / len(new)
    return f"stable against {name}, the better parent, on the vault: {gain:+.1f} points, E = {process.e:.3g}"


def _without_merge(works: Works) -> str | None:
    stable = works.ledger.channel(Channel.STABLE)
    assert stable
    model, checkpoint, chain = better_parent(works), None, training_of(works, stable)
    reference = model                       # what training on preferences began with: it holds on to that in every rung
    for spec in chain:
        inputs = {name: digest for name, digest in spec.inputs.items() if name != "checkpoint"} | {"model": model}
        if "checkpoint" in spec.inputs and checkpoint:
            inputs["checkpoint"] = checkpoint
        if "reference" in spec.inputs:
            reference = inputs["reference"] = reference if "checkpoint" in inputs else model
        outputs = works.runner.run(replace(spec, inputs=inputs)).outputs
        model, checkpoint = outputs["model"], outputs["checkpoint"]
    return model if chain else None


def _replay_alone(works: Works) -> str | None:
    """The model that reinforcement began with, trained on the replay's rows only."""
    stable = works.ledger.channel(Channel.STABLE)
    assert stable
    segments = [spec for spec in training_of(works, stable) if spec.kind == "segment"]
    if not segments:
        return None
    steps = sum(int(spec.params["steps"]) for spec in segments)
    recipe = {**segments[0].params["recipe"], "stage": "sft", "batch": REPLAY_ROWS, "steps": steps}
    data = {name: digest for name, digest in segments[0].inputs.items() if name.startswith("data:")}
    spec = JobSpec(
        "train", {"model": segments[0].inputs["model"], **data},
        {"recipe": recipe, "from_step": 0, "to_step": steps}, segments[0].seed, works.house.code,
    )
    return works.runner.run(spec).outputs["model"]


def _scores(works: Works, models: Mapping[str, str]) -> tuple[dict[str, dict[str, JsonObject]], tuple[str, ...]]:
    """Every model on fresh target items, on the vault (for people only, at the end) and on the guards."""
    begun = works.beginnings
    fresh, columns = _search_scores(works, models)
    inputs = {f"model:{digest}": digest for digest in sorted(set(models.values()))}
    for split, tasks, sealed in (
        (Split.VAULT, begun.targets, {"vault": begun.vault}),
        (Split.GUARD, tuple(task for task in begun.tasks if task.guard_items), {"guard": begun.guard}),
    ):
        params = {"tasks": [task.to_json() for task in tasks], "split": str(split)}
        values = works.runner.run(
            JobSpec("report", inputs | sealed, params, works.settings.seed, works.house.code)
        ).values
        for name, digest in models.items():
            fresh[name] |= {f"{task} {split}": found for task, found in values[digest].items()}
        columns += tuple(f"{task.name} {split}" for task in tasks)
    return fresh, columns


def _search_scores(
    works: Works, models: Mapping[str, str]
) -> tuple[dict[str, dict[str, JsonObject]], tuple[str, ...]]:
    begun = works.beginnings
    inputs = {f"model:{digest}": digest for digest in sorted(set(models.values()))} | {"seal": begun.seal}
    params = {
        "tasks": [task.to_json() for task in begun.targets], "split": str(Split.SEARCH), "count": FRESH_ITEMS,
    }
    seed = works.settings.seed + 1_000_003                       # items that no cycle drew on purpose
    values = works.runner.run(JobSpec("score", inputs, params, seed, works.house.code)).values
    scores = {
        name: {f"{task} fresh": dict(found) for task, found in values[digest].items()}
        for name, digest in models.items()
    }
    return scores, tuple(f"{task.name} fresh" for task in begun.targets)
