"""Where a model comes from: the models and data it was made of, back to the operator's own, and what was shown of it.

Read from the ledger alone, so it is known of models whose files are gone too. Reading only; standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from daemon.words import change_in_words, model_name
from loops.pipeline.recipe import OWN
from state.errors import one_line
from state.reading import Reading
from state.records import Event, JsonObject, LoopName, Row, Verdict


@dataclass(frozen=True, slots=True)
class Descent:
    """One model of a lineage: the row of the cycle that made it (None for the operator's own), the models it was made
    from (of an operator's adapter its base) and the training data it has met, by their names in kaizend.toml. `earlier`
    is the data of rungs before its own that left no model in the ledger, and `asked` what those were reinforced on:
    then its parent is where the first began. `given` is what the folder of an operator's own model was called.
    """

    model: str
    row: Row | None
    parents: tuple[str, ...]
    data: tuple[str, ...]
    earlier: JsonObject = field(default_factory=dict)
    asked: JsonObject = field(default_factory=dict)
    given: str = ""

    @property
    def made(self) -> str:
        """How, in words."""
        if self.row is None:
            named = f" ({one_line(self.given)})" if self.given else ""
            return f"as it was given{named}{': an adapter' if self.parents else ''}"
        return f"row {self.row.id}: {change_in_words(self.row.change)}"

    @property
    def path(self) -> list[str]:
        """What it goes through, a line each, where it is a path through layers; else nothing."""
        from loops.architecture.paths import PATH, in_words  # only exports need it: reading imports little

        return in_words(self.recipe, model_name) if self.recipe.get("kind") == PATH else []

    @property
    def recipe(self) -> JsonObject:
        """The change that made it, all that building or training needs; without the search's own mark."""
        change = self.row.change if self.row and isinstance(self.row.change, dict) else {}
        return {key: value for key, value in change.items() if key != "search"}


@dataclass(frozen=True, slots=True)
class Provenance:
    """All of it for one model: its lineage (itself first), the releases that were asked for it, oldest first, and the
    data of the life as {name: digest}.
    """

    lineage: Sequence[Descent]
    releases: Sequence[Row]
    data: dict[str, str]
    origin: Row

    @property
    def model(self) -> str:
        return self.lineage[0].model

    @property
    def release(self) -> Row | None:
        """The newest row with which it became stable."""
        return next((row for row in reversed(self.releases) if row.verdict == Verdict.PROMOTED), None)

    @property
    def row(self) -> Row:
        """The row that dates it: its release, else the cycle that made it, else the first start."""
        return self.release or self.lineage[0].row or self.origin

    @property
    def met(self) -> dict[str, str]:
        """The data that it or an ancestor was trained on, {name: digest}."""
        names = {name for descent in self.lineage for name in descent.data}
        return {name: digest for name, digest in sorted(self.data.items()) if name in names}


def provenance(reading: Reading, digest: str) -> Provenance:
    """What the ledger knows of a model."""
    origin = reading.rows(limit=1, events=[str(Event.GENESIS)])[0]
    releases = [row for row in reading.rows_with_result(digest) if row.event == Event.RELEASE]
    return Provenance(ancestry(reading, digest), releases, _data(origin), origin)


def ancestry(reading: Reading, digest: str) -> list[Descent]:
    """The model itself first, then what it was made from, nearest first, every model once."""
    found: list[Descent] = []
    seen, queue = {digest}, [digest]
    origins = reading.rows(limit=1, events=[str(Event.GENESIS)])
    known = [name for row in origins for name in _data(row)]
    over = {adapter: base for row in origins for adapter, base in _adapters(row)}
    called = {model: name for row in origins for model, name in _given(row)}
    while queue:
        model = queue.pop(0)
        made = [row for row in reading.rows_with_result(model) if row.event == Event.CLOSED and row.result != row.base]
        row = _maker(made)
        given = [over[model]] if row is None and model in over else []
        begun = _begun(reading, row)
        made_from = [begun["study"]] if begun else _made_from(row)
        parents = tuple(parent for parent in dict.fromkeys([*given, *made_from]) if parent != model)
        earlier, asked = begun.get("seen", {}), begun.get("asked", {})
        name = "" if row else called.get(model, "")
        found.append(Descent(model, row, parents, tuple(_met(row, known)), earlier, asked, name))
        queue += [parent for parent in parents if parent not in seen]
        seen.update(parents)
    return found


def _begun(reading: Reading, row: Row | None) -> JsonObject:
    """The recipe's change where the row goes on from a rung that left no row of its own: its incumbent was better. It
    says with which model the recipe began ("study"), what data it had seen before ("seen") and what it had been asked
    ("asked"). Else {}.
    """
    around = reading.row(row.parent) if row and row.parent is not None else None
    changes = [each.change for each in (row, around) if each and isinstance(each.change, dict)]
    change = next((change for change in changes if "study" in change), None)
    if row is None or row.base is None or change is None or change["study"] == row.base:
        return {}
    known = [each for each in reading.rows_with_result(row.base) if each.event == Event.CLOSED]
    return {} if any(each.loop != LoopName.REWARD for each in known) else change


def _made_from(row: Row | None) -> Iterator[str]:
    if row is None:
        return
    change = row.change if isinstance(row.change, dict) else {}
    digests = [*change["parents"], change.get("base")] if "parents" in change else [row.base]
    yield from (digest for digest in digests if digest)


def _met(row: Row | None, known: Sequence[str]) -> list[str]:
    """The data sources of a training: those that its mixture gives a share, or all where it names none of them."""
    recipe = row.change.get("recipe") if row and isinstance(row.change, dict) else None
    if not isinstance(recipe, dict):
        return []
    mixture = recipe.get("mixture") or {}
    met = [name for name in (*known, OWN) if mixture.get(name)] or known
    return [name for name in met if name != OWN]


def _adapters(origin: Row) -> Iterator[tuple[str, str]]:
    """The operator's adapters, each with the model that it is over."""
    change = origin.change if isinstance(origin.change, dict) else {}
    yield from ((adapter, change["base"]) for adapter in change.get("adapters", ()))


def _given(origin: Row) -> Iterator[tuple[str, str]]:
    """The operator's models, each with the name of the folder that it came from."""
    change, evidence = origin.change, origin.evidence
    named = evidence.get("named", {}).get("models") if isinstance(evidence, dict) else None
    if named and isinstance(change, dict):
        models, folders = ([each["start"], each["base"], *each["parents"]] for each in (change, named))
        yield from ((model, PurePath(folder).name) for model, folder in zip(models, folders, strict=False))


def data_given(reading: Reading) -> dict[str, str]:
    """The data of the life as {name: digest}."""
    origins = reading.rows(limit=1, events=[str(Event.GENESIS)])
    return _data(origins[0]) if origins else {}


def _data(origin: Row) -> dict[str, str]:
    data = origin.change.get("data", {}) if isinstance(origin.change, dict) else {}
    return data if isinstance(data, dict) else {}


def _maker(made: Sequence[Row]) -> Row | None:
    """The cycle out of which a model came that says most of how it was made: the pipeline's before the one around it,
    and before that of a single segment, which tells of nothing that was trained before it.
    """
    return max(made, key=lambda row: (row.loop == LoopName.PIPELINE, row.parent is not None, -row.id), default=None)
