"""What a segment of reinforcement is asked: fresh search items as questions, and others on which q is measured.

Sealed items are never among either. The references of the questions are for the verifier and the features, not for
any loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from loops.reward.levels import at_level
from loops.work.marking import Question
from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.scoring import encode_items
from safety.yardstick.tasks import Seal, draw, draw_some
from safety.yardstick.verifiers import make_verifier, second_verifier
from state.records import JsonObject, Split, seed_from


@dataclass(frozen=True, slots=True)
class Exercises:
    """The questions in the order they are asked, and the probe's items, which none of them is. `longest` counts the
    tokens of the longest reference, its end token included.
    """

    questions: list[Question]
    probe: list[Item]
    longest: int


def set_exercises(
    tasks: Sequence[TaskSpec], seal: Seal, tokenizer: Any, count: int, seed: int,
    probe_items: int, probe_seed: int, levels: Mapping[str, JsonObject] | None = None,
) -> Exercises:
    """`count` questions, the tasks taking turns, and `probe_items` items. Raises TaskError where a task has too few.

    `levels` are the configs of the generators of tasks that are asked otherwise than they are; where such a level has
    too few questions, they come again. The probe is of the tasks as they are.
    """
    levels = levels or {}
    posed = [at_level(task, levels[task.name]) if task.name in levels else task for task in tasks]
    probe: list[Item] = []
    asked: list[list[Item]] = []
    for number, task in enumerate(tasks):
        held = draw(task, Split.SEARCH, len(range(number, probe_items, len(tasks))), probe_seed, seal)
        share = len(range(number, count, len(tasks)))
        others, drawn_by = seal.besides(item.id for item in held), seed_from(seed, task.name)
        if task.name in levels:
            asked.append(list(islice(cycle(draw_some(posed[number], share, drawn_by, others)), share)))
        else:
            asked.append(draw(task, Split.SEARCH, share, drawn_by, others))
        probe += held
    verifiers = [(make_verifier(task), second_verifier(task)) for task in posed]
    turns = [(place % len(tasks), place // len(tasks)) for place in range(count)]
    items = [asked[task][place] for task, place in turns]
    ids = encode_items(tokenizer, [(item.prompt, item.answer) for item in (*items, *probe)])
    questions = [
        Question(item, prompt, *verifiers[task])
        for item, (prompt, _), (task, _) in zip(items, ids, turns, strict=False)
    ]
    return Exercises(questions, probe, max(len(answer) for _, answer in ids))


def plain(tokenizer: Any) -> Any:
    """The tokenizer, adding no special tokens of its own: TRL asks it for prompts without saying so, and everybody else
    here scores and trains without them.
    """
    kind = type(tokenizer)

    def call(self: Any, *texts: Any, **options: Any) -> Any:
        return kind.__call__(self, *texts, **{"add_special_tokens": False, **options})

    tokenizer.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    return tokenizer
