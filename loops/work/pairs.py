"""The job "pairs": what the model itself answers, set against each other by the strict verifier.

inputs   model, seal
params   tasks (targets), prompts, samples, temperature, references (default false), max_tokens (None: no cap)
outputs  pairs: JSON lines {"prompt", "chosen", "rejected"}; none where no pair was found
values   prompts, mixed, pairs, from_references, success, tokens, stopped

Prompts are fresh search items, the tasks taking turns, never sealed ones; where a task has too few, fewer are asked.
`chosen` is a completion that the verifier calls right and the model ended by itself, `rejected` one of the same prompt
that it calls wrong. A group that is all wrong gives nothing, unless `references` allows to train on the items' own
answers: then the answer is the chosen one. "mixed" counts groups that hold both. Prompts that might go beyond
`max_tokens` are not asked; "prompts" counts those that were. A pure function of the spec and its inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch

from loops.work.exercises import Exercises, set_exercises
from loops.work.marking import Question
from loops.work.stops import out_of_tokens
from safety.yardstick.items import TaskError, TaskSpec
from safety.yardstick.scoring import load_model, pad_id
from safety.yardstick.tasks import Seal
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject, seed_from

ROWS_AT_ONCE = 128
SPARE_TOKENS = 2
MOST_PAIRS = 4
"""From one prompt: a hard question must not be outweighed by one that has many wrong answers."""


@dataclass(frozen=True, slots=True)
class Errand:
    """The spec's parameters, read once."""

    tasks: list[TaskSpec]
    prompts: int
    samples: int
    temperature: float
    references: bool
    max_tokens: int | None
    seed: int

    @classmethod
    def of(cls, spec: JobSpec) -> Errand:
        params = spec.params
        for name, least in (("prompts", 1), ("samples", 2)):
            if params[name] < least:
                raise ValueError(f"{name} is {params[name]}, it must be at least {least}")
        if not params["temperature"] > 0:
            raise ValueError(f"temperature is {params['temperature']}, it must be above 0")
        return cls(
            [TaskSpec.from_json(body) for body in params["tasks"]], params["prompts"], params["samples"],
            params["temperature"], params.get("references", False), params.get("max_tokens"), spec.seed,
        )


@dataclass(frozen=True, slots=True)
class Group:
    """The answers to one question: `right` ones, ended by the model, and `wrong` ones, each text once; and how many
    samples of all were right.
    """

    question: Question
    right: list[str]
    wrong: list[str]
    solved: int

    def pairs(self, references: bool) -> Iterator[JsonObject]:
        """At most `MOST_PAIRS`; every wrong text once, against the right ones in turn."""
        item = self.question.item
        chosen = self.right or ([item.answer] if references else [])
        for better, worse in zip(cycle(chosen), self.wrong[:MOST_PAIRS], strict=False):
            yield {"prompt": item.prompt, "chosen": better, "rejected": worse}


def pairs(spec: JobSpec, desk: Desk) -> Produced:
    """Sample, judge and pair. Raises TaskError, and ValueError for bad inputs."""
    torch.set_num_threads(desk.threads)
    errand = Errand.of(spec)
    scored = load_model(desk.inputs["model"], desk.device)
    exercises = _exercises(errand, Seal.of(desk.inputs), scored.tokenizer)
    groups, tokens, stopped = _answered(errand, desk, scored.model, scored.tokenizer, exercises)
    rows = [row for group in groups for row in group.pairs(errand.references)]
    written = desk.folder / "pairs.jsonl"
    written.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    samples = errand.samples * len(groups)
    values = {
        "prompts": len(groups), "mixed": sum(bool(group.right and group.wrong) for group in groups), "pairs": len(rows),
        "from_references": sum(not group.right for group in groups for _ in group.pairs(errand.references)),
        "success": sum(group.solved for group in groups) / samples if samples else None,
        "tokens": tokens, "stopped": stopped,
    }
    return Produced(values, {"pairs": written} if rows else {}, items=samples, tokens=tokens)


def _exercises(errand: Errand, seal: Seal, tokenizer: Any) -> Exercises:
    count = errand.prompts
    while True:
        try:
            return set_exercises(errand.tasks, seal, tokenizer, count, errand.seed, 0, 0)
        except TaskError:
            if count <= 1:
                raise
            count //= 2


def _answered(
    errand: Errand, desk: Desk, model: Any, tokenizer: Any, exercises: Exercises
) -> tuple[list[Group], int, str | None]:
    """The groups, the tokens that they took (prompts and answers), and why there are not more."""
    groups: list[Group] = []
    tokens, width = 0, exercises.longest + SPARE_TOKENS
    at_once = max(1, ROWS_AT_ONCE // errand.samples)
    for begin in range(0, len(exercises.questions), at_once):
        asked = exercises.questions[begin:begin + at_once]
        most = errand.samples * sum(len(question.ids) + width for question in asked)
        if errand.max_tokens is not None and tokens + most > errand.max_tokens:
            return groups, tokens, out_of_tokens(errand.max_tokens, len(groups))
        torch.manual_seed(seed_from(errand.seed, "answers", len(groups)))
        written = sampled(model, tokenizer, [question.ids for question in asked], errand.samples, errand.temperature,
                          width)
        for question, answers in zip(asked, written, strict=True):
            tokens += sum(len(question.ids) + len(answer) for answer in answers)
            groups.append(_judged(question, answers, tokenizer))
        desk.progress(len(groups) / len(exercises.questions), f"{len(groups)} prompts")
    return groups, tokens, None


@torch.inference_mode()
def sampled(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], samples: int, temperature: float, width: int
) -> list[list[list[int]]]:
    """`samples` answers to each prompt, drawn from the whole distribution: ids up to `width`, the end token included.
    Draws from torch's own generator.
    """
    longest, end = max(map(len, prompts)), int(tokenizer.eos_token_id)
    ids = torch.full((len(prompts), longest), pad_id(tokenizer))
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt):] = torch.tensor(prompt)
        mask[row, longest - len(prompt):] = 1
    out = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), do_sample=True, temperature=temperature,
        top_k=0, top_p=1.0, num_return_sequences=samples, max_new_tokens=width,
    )[:, longest:].tolist()
    answers = [row[: row.index(end) + 1] if end in row else row for row in out]
    return [answers[begin:begin + samples] for begin in range(0, len(answers), samples)]


def _judged(question: Question, answers: Sequence[list[int]], tokenizer: Any) -> Group:
    """A right text that the model did not end is neither right nor wrong: written out it could not be told apart."""
    end = int(tokenizer.eos_token_id)
    texts = [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
    verdicts = [question.verifier(question.item, text) == 1 for text in texts]
    right = [text for text, good, ids in zip(texts, verdicts, answers, strict=True) if good and ids[-1] == end]
    wrong = [text for text, good in zip(texts, verdicts, strict=True) if not good]
    return Group(question, list(dict.fromkeys(right)), list(dict.fromkeys(wrong)), len(right))
