"""Job "watch": one look at a released model beside the one it replaced, on new items dealt for this watch.

Like the gate's job it reads sealed items. What the scores say is `safety.watch`'s to decide. Invariant: which items a
look scores, and in which order, depends on what was dealt, the two models and the number of the look alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from safety.gate import items_digest
from safety.yardstick.gating import Pair, Question, Record, kept, shuffled
from safety.yardstick.items import TaskSpec
from safety.yardstick.scorebook import ScoreBook
from safety.yardstick.scoring import BATCH
from safety.yardstick.sealed import load_dealt
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject


def look(spec: JobSpec, desk: Desk) -> Produced:
    """The job. Inputs: model:new, model:old, dealt; params: tasks, targets, guards (names), look, size, items, batch.

    Values: "n" items of each group, "more" whether a further look would find any, "items_digest". Output "scores", as
    `safety.watch` reads it.
    """
    params = spec.params
    tasks = {task.name: task for task in map(TaskSpec.from_json, params["tasks"])}
    order = (spec.inputs["dealt"], spec.inputs["model:new"], spec.inputs["model:old"])

    def asked(names: Sequence[str]) -> list[Question]:
        questions = [(tasks[name], item) for name in names for item in load_dealt(desk.inputs["dealt"], name)]
        return shuffled(questions, *order)[: int(params["items"])]

    groups = {"": asked(params["targets"]), **{name: asked([name]) for name in params["guards"]}}
    size, start = int(params["size"]), int(params["look"]) * int(params["size"])
    book = ScoreBook(desk, int(params.get("batch", BATCH)))        # both models stay in memory from look to look
    new, old = (book.model(spec.inputs[name], name) for name in ("model:new", "model:old"))
    pair = Pair(new, old, book.batch)
    records = {name: Record() for name in groups}
    for name, questions in groups.items():
        for _ in pair.differences(questions[start : start + size], records[name]):
            pass
    scores: JsonObject = {
        "targets": records[""].to_json(),
        "guards": {name: record.to_json() for name, record in records.items() if name},
    }
    values = {
        "look": params["look"], "more": any(len(questions) > start + size for questions in groups.values()),
        "n": {name or "targets": len(record.items) for name, record in records.items()},
        "items_digest": items_digest(scores),
    }
    return Produced(
        values, {"scores": kept(desk.folder, scores)}, items=2 * sum(len(record.items) for record in records.values())
    )
