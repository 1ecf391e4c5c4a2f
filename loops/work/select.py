"""The job "select": which rows of each source are trained on, as a recipe's selection says.

inputs   data:<source> ..., model (only for a band of perplexity)
params   selection
outputs  data:<source> ... (JSON lines; none for a source of which nothing is left)
values   sources {source: {"rows", "kept", "dropped": {reason: rows}}}

Each source by itself, one filter after the other, each on what the one before it left: duplicates, length, quality,
perplexity. Rows that stand at the edge of a band are kept, so equal ones stay or go together. They are written in one
form, so what was selected has the same digest from whatever file it came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from loops.pipeline.recipe import WHOLE, Band, Deduplicate, Selection
from loops.work.duplicates import exact, near
from loops.work.quality import quality
from loops.work.rows import Rows, answer_log_p, tokenise
from safety.yardstick.scoring import Scored, load_model
from safety.yardstick.training import Row, rows_in, texts_of
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject, canonical

Judge = Callable[[Sequence[Row]], list[bool]]
"""Which of some rows are kept."""


def select(spec: JobSpec, desk: Desk) -> Produced:
    """Select rows of every source. Raises RowError for rows that cannot be read, ValueError for bad parameters."""
    torch.set_num_threads(desk.threads)
    selection = Selection.from_json(spec.params["selection"])
    scored = load_model(desk.inputs["model"], desk.device) if selection.asks_model else None
    names = sorted(name for name in desk.inputs if name.startswith("data:"))
    sources, outputs = {}, {}
    for number, name in enumerate(names):
        desk.progress(number / len(names), name)
        every = [row for row in rows_in(desk.inputs[name]) if len(row) == 2]
        rows, report = selected(every, _filters(selection, scored, desk.device))
        sources[name.removeprefix("data:")] = report
        if rows:
            outputs[name] = _written(desk.folder / f"rows-{number}.jsonl", rows)
    return Produced({"sources": sources}, outputs, items=sum(report["rows"] for report in sources.values()))


def selected(rows: list[Row], filters: Iterable[tuple[str, Judge]]) -> tuple[list[Row], JsonObject]:
    """What the filters leave, and {"rows", "kept", "dropped"}."""
    report: JsonObject = {"rows": len(rows), "kept": 0, "dropped": {}}
    for reason, judge in filters:
        kept = judge(rows) if rows else []
        if gone := len(rows) - sum(kept):
            report["dropped"][reason] = gone
        rows = [row for row, keep in zip(rows, kept, strict=True) if keep]
    return rows, report | {"kept": len(rows)}


def _filters(selection: Selection, scored: Scored | None, device: str) -> list[tuple[str, Judge]]:
    found: list[tuple[str, Judge]] = []
    if selection.deduplicate is not Deduplicate.NONE:
        found.append(("duplicate", lambda rows: [not repeated for repeated in exact(rows)]))
    if selection.deduplicate is Deduplicate.NEAR:
        found.append(("near duplicate", lambda rows: [not repeated for repeated in near(rows)]))
    if selection.length != WHOLE:
        found.append(("length", lambda rows: inside([_words(row) for row in rows], selection.length)))
    if selection.quality < 1:
        best = (1.0 - selection.quality, 1.0)
        found.append(("quality", lambda rows: inside([quality(row) for row in rows], best)))
    if scored is not None:
        found.append(("perplexity", lambda rows: inside(losses(rows, scored, device), selection.perplexity)))
    return found


def inside(values: Sequence[float], band: Band) -> list[bool]:
    """Which values lie in a band of those that are finite: of n different ones all but the least n x band[0] and the
    greatest n x (1 - band[1]), rounded down, and never none.
    """
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        return [False] * len(values)
    low = min(math.floor(round(band[0] * len(finite), 6)), len(finite) - 1)
    high = max(math.ceil(round(band[1] * len(finite), 6)) - 1, low)
    return [finite[low] <= value <= finite[high] for value in values]


def losses(rows: Sequence[Row], scored: Scored, device: str) -> list[float]:
    """Nats a token of each answer, its end included, given what it answers."""
    tokens = tokenise(Rows(rows, {}), range(len(rows)), scored.tokenizer)
    with torch.no_grad():
        found = answer_log_p(scored.model, [tokens.rows[place] for place in range(len(rows))], tokens.pad, device)
    return [-sum(values) / len(values) for values in found]


def _words(row: Row) -> float:
    return float(sum(len(text.split()) for text in texts_of(row)))


def _written(file: Path, rows: Sequence[Row]) -> Path:
    """One row a line, as it is read again."""
    with file.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(canonical(_body(row)) + "\n" for row in rows)
    return file


def _body(row: Row) -> JsonObject:
    asked, answer = row
    if isinstance(asked, str):
        return {"prompt": asked, "answer": answer}
    said = [*asked, ("assistant", answer)]
    return {"messages": [{"role": role, "content": content} for role, content in said]}
