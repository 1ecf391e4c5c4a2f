"""Which part of a change or of a measured model falls under which bound.

Pure, standard library only; read through `Bounds.admit` and `Bounds.accept`. Invariant: a change whose kind,
operator, stage, adapter or feature is not listed is refused, and so is a number that is missing, not a number or not
finite where a limit asks for one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from safety.limits import Refusal
from safety.operators import OPERATORS, SCALES, WEIGHTS, Gene, Operator
from state.records import Candidate, JsonObject, LoopName

if TYPE_CHECKING:
    from safety.bounds import Bounds, DriftBounds

Findings = Iterator[Refusal | None]


def admit(bounds: Bounds, candidate: Candidate, incumbent: JsonObject | None = None) -> Refusal | None:
    """The first bound that the candidate's change breaks, or None. `incumbent` is the merge it came from, if known."""
    checks = {
        LoopName.ARCHITECTURE: _architecture, LoopName.PIPELINE: _pipeline, LoopName.REWARD: _reward,
    }[candidate.loop]
    refusal = _first(checks(bounds, candidate.change))
    step = step_of(candidate.change, incumbent) if refusal is None else None
    return refusal if step is None else _between("search.largest_step", step, -math.inf, bounds.search.largest_step)


def admit_input(bounds: Bounds, digest: str) -> Refusal | None:
    """The refusal of a model that a life would begin with and that the bounds do not name; where they name none, None.
    """
    allowed = bounds.supply.parents
    return _listed("supply.parents", digest, allowed) if allowed else None


def step_of(change: JsonObject, incumbent: JsonObject | None) -> float | None:
    """The largest change of one number of a cell from one merge to another; None where they cannot be compared.

    They can where both merge the same parents over the same base by the same operator, and either both divide the
    layers alike or one has a single group, which then stands for all. A gene is compared with the gene that acts on
    the same parent, layers and module. Never raises: what is no table of numbers cannot be compared.
    """
    alike = ("kind", "operator", "base", "parents")
    if incumbent is None or change.get("kind") != "merge" or any(change.get(k) != incumbent.get(k) for k in alike):
        return None
    mine, theirs = _tables(change), _tables(incumbent)
    if len(mine) != len(theirs):
        return None
    steps = [0.0]
    for table, other in zip(mine, theirs, strict=True):
        groups = max(len(table), len(other))
        if {len(table), len(other)} - {1, groups}:
            return None
        for row, was in zip(_spread(table, groups), _spread(other, groups), strict=True):
            if len(row) != len(was):
                return None
            steps += [abs(gene - before) for gene, before in zip(row, was, strict=True)]
    return max(steps)


def _tables(change: JsonObject) -> list[list[list[float]]]:
    """The tables of groups and modules of a merge, for each parent or one in all; none if malformed."""
    tables: list[Any] = []
    for gene in genes_of(change):
        if gene.per_cell:
            value = change.get(gene.name)
            tables += value if gene.per_parent and isinstance(value, list) else [value]
    sound = all(
        isinstance(table, list) and all(isinstance(row, list) and all(map(_is_number, row)) for row in table)
        for table in tables
    )
    return tables if sound else []


def genes_of(change: JsonObject) -> tuple[Gene, ...]:
    """The genes that a merge has by its operator; none where there is no such operator."""
    operator = change.get("operator")
    return OPERATORS[Operator(operator)].genes if operator in list(Operator) else ()


def _spread(table: list[list[float]], groups: int) -> list[list[float]]:
    return table * groups if len(table) == 1 else table


def accept(bounds: Bounds, facts: JsonObject) -> Refusal | None:
    """The first limit of the model family that the facts of a made model break, or None."""
    return _first(_model(bounds, facts))


def foresee(bounds: Bounds, forecast: JsonObject) -> Refusal | None:
    """The first limit of the model family that parameters or file_gib break, where they are known, or None."""
    limits = bounds.model
    return _first(
        _between(f"model.max_{key}", forecast[key], low, high)
        for key, low, high in (("parameters", 1, limits.max_parameters), ("file_gib", 0.0, limits.max_file_gib))
        if key in forecast
    )


def within(limits: DriftBounds, drift: JsonObject, name: str) -> Refusal | None:
    """The first drift limit broken. What a drift could not be measured in is absent from it and passes."""
    return _first(
        _between(f"{name}.{key}", drift[key], -math.inf, getattr(limits, key))
        for key in limits.__dataclass_fields__ if key in drift
    )


def _architecture(bounds: Bounds, change: JsonObject) -> Findings:
    kind, search = change.get("kind"), bounds.search
    if kind == "keep":
        yield _listed("search.operators", "keep", search.operators)
    elif kind == "crossover":
        yield _listed("search.operators", "crossover", search.operators)
        yield _parents(bounds, change)
        yield from (_between("search.mix", mix, 0.0, 1.0) for mix in _numbers(change.get("mix")))
    elif kind == "merge":
        yield _listed("search.operators", change.get("operator"), search.operators)
        yield _listed("search.operators", change.get("operator"), tuple(Operator))
        yield _parents(bounds, change)
        for gene in genes_of(change):
            name, low, high = f"search.{gene.name}", gene.low, gene.high
            if gene in (WEIGHTS, SCALES):
                name, low, high = "search.weight", search.min_weight, search.max_weight
            yield from (_between(name, number, low, high) for number in _numbers(change.get(gene.name)))
    elif kind == "path":
        yield _listed("search.operators", "path", search.operators)
        yield _parents(bounds, change)
        yield from _path(bounds, change)
    else:
        yield Refusal("search.kind", kind, ["merge", "crossover", "path", "keep"])


def _path(bounds: Bounds, change: JsonObject) -> Findings:
    """Depth and scales of a path; its layers must be layers of its parents, as far as a change can tell."""
    layers, scales, parents = (change.get(key) for key in ("layers", "scales", "parents"))
    sound = isinstance(layers, list) and all(
        isinstance(layer, list) and len(layer) == 2 and all(type(entry) is int and entry >= 0 for entry in layer)
        for layer in layers
    )
    if not sound or not isinstance(layers, list) or not isinstance(scales, list) or len(scales) != len(layers):
        yield Refusal("search.path", "another form", "a list of [parent, layer] with a scale for each")
        return
    yield _between("model.max_layers", len(layers), 1, bounds.model.max_layers)
    known = len(parents) if isinstance(parents, list) else 0
    yield from (_between("search.path", model, 0, known - 1) for model, _ in layers)
    search = bounds.search
    yield from (_between("search.scale", scale, search.min_scale, search.max_scale) for scale in scales)


def _parents(bounds: Bounds, change: JsonObject) -> Refusal | None:
    parents = change.get("parents")
    count = len(parents) if isinstance(parents, list) else 0
    return _between("search.max_parents", count, 1, bounds.search.max_parents)


def _pipeline(bounds: Bounds, change: JsonObject) -> Findings:
    yield from _kind(change, "pipeline")
    yield from _recipe(bounds, change.get("recipe"))
    for key in ("from_step", "to_step"):
        yield _between("pipeline.max_steps", change.get(key, 0), 0, bounds.pipeline.max_steps)


def _reward(bounds: Bounds, change: JsonObject) -> Findings:
    yield from _kind(change, "reward")
    shaping = change.get("shaping")
    if not isinstance(shaping, dict) or not isinstance(shaping.get("weights"), dict):
        yield Refusal("reward.shaping", shaping, "weights by feature and a strength")
        return
    yield _between("reward.max_strength", shaping.get("strength"), 0.0, bounds.reward.max_strength)
    for feature, weight in shaping["weights"].items():
        yield _listed("reward.features", feature, bounds.reward.features) if weight else None
        yield _between("reward.weight", weight, -1e6, 1e6)
    if "recipe" in change:
        yield from _recipe(bounds, change["recipe"])
    for key in ("from_step", "steps"):
        yield _between("pipeline.max_steps", change.get(key, 0), 0, bounds.pipeline.max_steps)


def _kind(change: JsonObject, family: str) -> Findings:
    """These loops have one kind of change; one that claims another kind is refused."""
    if "kind" in change and change["kind"] != family:
        yield Refusal(f"{family}.kind", change["kind"], [family])


def _recipe(bounds: Bounds, recipe: Any) -> Findings:
    if not isinstance(recipe, dict):
        yield Refusal("pipeline.recipe", recipe, "a recipe")
        return
    limits = bounds.pipeline
    yield _listed("pipeline.stages", recipe.get("stage"), limits.stages)
    yield _between(
        "pipeline.learning_rate", recipe.get("learning_rate"), limits.min_learning_rate, limits.max_learning_rate
    )
    yield _between("pipeline.max_steps", recipe.get("steps"), 1, limits.max_steps)
    yield _between("pipeline.max_batch", rows_a_step(recipe), 1, limits.max_batch)
    adapter = recipe.get("adapter", {"kind": "none"})
    kind = adapter.get("kind") if isinstance(adapter, dict) else adapter
    yield _listed("pipeline.adapters", kind, limits.adapters)
    if isinstance(adapter, dict) and kind != "none":
        yield _between("pipeline.max_rank", adapter.get("rank"), 1, limits.max_rank)


def rows_a_step(recipe: JsonObject) -> float | None:
    """Rows or completions of one optimiser step, both answers of a pair counted; None where that is not said."""
    batch: Any = recipe.get("batch")
    each: Any = {"dpo": 2, "grpo": recipe.get("group", 1)}.get(str(recipe.get("stage")), 1)
    return batch * each if _is_number(batch) and _is_number(each) else None


def _model(bounds: Bounds, facts: JsonObject) -> Findings:
    limits = bounds.model
    if facts.get("non_finite") != 0:
        yield Refusal("model.non_finite", facts.get("non_finite"), 0)
    yield _between("model.max_parameters", facts.get("parameters"), 1, limits.max_parameters)
    yield _between("model.max_layers", facts.get("layers"), 0, limits.max_layers)
    yield _between("model.max_file_gib", facts.get("file_gib"), 0.0, limits.max_file_gib)
    yield from (_listed("model.dtypes", dtype, limits.dtypes) for dtype in facts.get("dtypes", [None]))
    yield _between("model.max_vocabulary", facts.get("vocabulary"), 0, limits.max_vocabulary)
    yield _between("model.max_hidden", facts.get("hidden"), 0, limits.max_hidden)
    yield _between("model.max_intermediate", facts.get("intermediate"), 0, limits.max_intermediate)
    yield _listed("model.architectures", facts.get("model_type"), limits.architectures)
    yield Refusal("supply.remote_code", facts.get("loads_code"), False) if facts.get("loads_code") != [] else None
    if limits.same_schema and facts.get("unlike"):
        yield Refusal("model.same_schema", facts["unlike"], "the tensors that it had")


def _first(findings: Iterable[Refusal | None]) -> Refusal | None:
    return next((refusal for refusal in findings if refusal is not None), None)


def _listed(bound: str, value: Any, allowed: tuple[str, ...]) -> Refusal | None:
    return None if value in allowed else Refusal(bound, value, list(allowed))


def _between(bound: str, value: Any, low: float, high: float) -> Refusal | None:
    if _is_number(value) and low <= value <= high:
        return None
    shown = value if not isinstance(value, float) or math.isfinite(value) else str(value)
    return Refusal(bound, shown, high if math.isinf(low) else [low, high])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: Any) -> Iterator[Any]:
    """Every leaf of a nested list; what is missing or empty comes out as None, which no range holds."""
    if isinstance(value, list) and value:
        for entry in value:
            yield from _numbers(entry)
    else:
        yield None if value == [] else value
