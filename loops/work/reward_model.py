"""A learned reward: a scalar head on a language model, and the two jobs that make and examine one, with TRL.

"reward_model": train on pairs of right and wrong answers (Bradley-Terry).
inputs   model, pairs (as the job "pairs" writes them)
params   learning_rate, batch (pairs a step), steps, adapter, save_steps, max_tokens (None: no cap)
outputs  model: the folder of a language model, and beside its files the head and r_ref
values   pairs, steps, tokens, held_out, accuracy, r_ref, loss_first, loss_last, curve, stopped, learned

"reward_check": how well one does on other pairs.
inputs   reward_model, pairs
values   pairs, prompts, accuracy, tokens

A part of the prompts is held out; "held_out" counts their pairs and "accuracy" is the share of them of which the chosen
answer gets more. r_ref is the mean reward of the wrong answers. The head is our own because most kinds of models that
the architecture loop may grow have no class for sequence classification; it reads the last token, which is the end
token. Steps beyond `max_tokens` are cut off before the first one is done; where not even one fits, there are no outputs
and "steps" is 0. Killed anywhere and run again in the same folder, the training goes on from its last verified
checkpoint and ends with the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput
from trl import RewardConfig, RewardTrainer

from loops.pipeline.recipe import Adapter, AdapterKind, Recipe, Schedule, Stage
from loops.work import checkpoint
from loops.work.course import Progress, thinned
from loops.work.learner import Learner, load_learner, schedule
from loops.work.rows import Rows, mixed
from loops.work.stops import out_of_tokens
from loops.work.watch import Logs, Watch, halving, quiet_arguments, run_trainer
from safety.yardstick.scoring import Encoded, encode_items, load_model, pad_id
from state.jobs import Desk, JobSpec, Produced
from state.records import seed_from

HEAD = "reward_head.safetensors"
ABOUT = "reward.json"
HELD_OUT = 0.25
SAVE_STEPS = 50
ROWS_AT_ONCE = 64

Pair = tuple[str, str, str]
"""Prompt, chosen and rejected answer."""


class RewardModel(torch.nn.Module):
    """`body` is a causal language model, with an adapter or without. Gives one number a row, as TRL expects it."""

    def __init__(self, body: Any, head: torch.nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.config = deepcopy(body.config)
        self.config.num_labels = 1

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False) -> SequenceClassifierOutput:
        """Rewards as logits, (rows, 1). Rows are padded on the right."""
        bare = self.body.get_base_model() if isinstance(self.body, PeftModel) else self.body
        hidden = bare.get_decoder()(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache
        ).last_hidden_state
        last = hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(dim=1) - 1]
        with torch.autocast(last.device.type, enabled=False):
            return SequenceClassifierOutput(logits=self.head(last.float()))

    def add_model_tags(self, tags: Any) -> None:
        """TRL's tags belong on a model card, which this has not."""


@dataclass(frozen=True, slots=True)
class Judge:
    """A reward model in memory, ready to be asked."""

    model: RewardModel
    tokenizer: Any
    r_ref: float

    def rewards(self, answers: Sequence[tuple[str, str]]) -> list[float]:
        """r of each (prompt, answer)."""
        return _rewards(self.model, encode_items(self.tokenizer, list(answers)), pad_id(self.tokenizer))

    def phis(self, answers: Sequence[tuple[str, str]]) -> list[float]:
        """sigmoid(r - r_ref) of each (prompt, answer): PAR, 2502.18770."""
        return torch.sigmoid(torch.tensor(self.rewards(answers), dtype=torch.float64) - self.r_ref).tolist()


def load_judge(folder: Path, device: str) -> Judge:
    """The reward model of a folder. ValueError with one line where it is none."""
    try:
        head, about = load_file(folder / HEAD)["weight"], json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: no reward model ({error})") from error
    scored = load_model(folder, device)
    model = RewardModel(scored.model, _head(head.shape[1])).to(device).eval().requires_grad_(False)
    model.head.weight.copy_(head)
    return Judge(model, scored.tokenizer, float(about["r_ref"]))


@dataclass(frozen=True, slots=True)
class Errand:
    """The spec's parameters, read once. Of `recipe` only rate, batch, steps and adapter count."""

    recipe: Recipe
    save_steps: int
    max_tokens: int | None
    seed: int

    @classmethod
    def of(cls, spec: JobSpec) -> Errand:
        params, adapter = spec.params, spec.params.get("adapter", {})
        recipe = Recipe(
            Stage.SFT, params["learning_rate"], params["batch"], params["steps"], 0.1, Schedule.COSINE,
            Adapter(**{**adapter, "kind": AdapterKind(adapter.get("kind", AdapterKind.NONE))}),
        )
        return cls(recipe, params.get("save_steps", SAVE_STEPS), params.get("max_tokens"), spec.seed)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Every pair as tokens, those held out, and the pairs of each step that the tokens suffice for, (steps, batch).
    `stopped` says in words why these are not all steps.
    """

    chosen: list[Encoded]
    rejected: list[Encoded]
    held_out: list[int]
    steps: list[list[int]]
    stopped: str | None

    def count(self, places: Sequence[int]) -> int:
        """Tokens of some pairs, both answers with their prompt."""
        return sum(len(ids) for place in places for row in (self.chosen[place], self.rejected[place]) for ids in row)


def reward_model(spec: JobSpec, desk: Desk) -> Produced:
    """Train one. Raises Diverged, and ValueError for bad inputs."""
    torch.set_num_threads(desk.threads)
    errand = Errand.of(spec)
    return halving(errand.recipe.batch, lambda micro_batch: _attempt(errand, desk, micro_batch))


def reward_check(spec: JobSpec, desk: Desk) -> Produced:
    """The share of pairs of which a reward model ranks the chosen answer higher. Raises ValueError."""
    torch.set_num_threads(desk.threads)
    pairs, judge = read_pairs(desk.inputs["pairs"]), load_judge(desk.inputs["reward_model"], desk.device)
    chosen, rejected = _encoded(judge.tokenizer, pairs)
    lesson = Lesson(chosen, rejected, list(range(len(pairs))), [], None)
    tokens = lesson.count(lesson.held_out)
    values = {
        "pairs": len(pairs), "prompts": len({prompt for prompt, _, _ in pairs}),
        "accuracy": _accuracy(judge.model, lesson, pad_id(judge.tokenizer)), "tokens": tokens,
    }
    return Produced(values, items=len(pairs), tokens=tokens)


def read_pairs(file: Path) -> list[Pair]:
    """The pairs that the job "pairs" wrote. ValueError where a line is none."""
    pairs = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            body = json.loads(line)
            pairs.append((str(body["prompt"]), str(body["chosen"]), str(body["rejected"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"pairs, line {number}: not a pair ({error})") from error
    return pairs


def _attempt(errand: Errand, desk: Desk, micro_batch: int) -> Produced:
    learner = _learner(errand, desk)
    lesson = _set_lesson(errand, desk, learner)
    if not lesson.steps:
        return Produced({"steps": 0, "tokens": 0, "stopped": lesson.stopped})
    found = checkpoint.latest(desk.folder / "steps")
    progress = Progress(**found.state) if found else Progress(0)
    if found:
        learner.restore(found)
    progress.micro_batch = micro_batch or progress.micro_batch
    if progress.step < len(lesson.steps):
        _run(errand, desk, learner, lesson, progress)
    return _finish(desk, learner, lesson, progress)


def _learner(errand: Errand, desk: Desk) -> Learner:
    """The model with a head, which learns with it."""
    learner = load_learner(desk.inputs["model"], errand.recipe, errand.seed, desk.device)
    body = learner.model.get_base_model() if isinstance(learner.model, PeftModel) else learner.model
    head = _head(body.get_output_embeddings().weight.shape[1])
    width = head.weight.shape[1]
    drawn = torch.Generator().manual_seed(seed_from(errand.seed, "head"))
    with torch.no_grad():
        head.weight.copy_(torch.randn((1, width), generator=drawn) / width)
    model = RewardModel(learner.model, head).to(desk.device)
    learner.optimizer.add_param_group({"params": [model.head.weight]})
    return replace(learner, model=model)


def _head(width: int) -> torch.nn.Linear:
    return torch.nn.Linear(width, 1, bias=False, dtype=torch.float32)


def _set_lesson(errand: Errand, desk: Desk, learner: Learner) -> Lesson:
    pairs = read_pairs(desk.inputs["pairs"])
    prompts = sorted({prompt for prompt, _, _ in pairs})
    if len(prompts) < 2:
        raise ValueError("pairs of at least two prompts are needed, one of them to hold out")
    order = np.random.default_rng(seed_from(errand.seed, "held out")).permutation(len(prompts))
    spared = {prompts[place] for place in order[:max(1, round(HELD_OUT * len(prompts)))].tolist()}
    taught = [place for place, (prompt, _, _) in enumerate(pairs) if prompt not in spared]
    held_out = [place for place, (prompt, _, _) in enumerate(pairs) if prompt in spared]
    recipe = errand.recipe
    turns = mixed(Rows([], {"pairs": range(len(taught))}), {"pairs": 1.0}, recipe.batch, range(recipe.steps),
                  errand.seed)
    steps = [[taught[turn] for turn in row] for row in turns.tolist()]
    lesson = Lesson(*_encoded(learner.tokenizer, pairs), held_out, steps, None)
    if errand.max_tokens is None:
        return lesson
    used = np.cumsum([lesson.count(step) for step in steps])
    fit = int(np.searchsorted(used, errand.max_tokens, "right"))
    stopped = out_of_tokens(errand.max_tokens, fit) if fit < len(steps) else None
    return replace(lesson, steps=steps[:fit], stopped=stopped)


def _encoded(tokenizer: Any, pairs: Sequence[Pair]) -> tuple[list[Encoded], list[Encoded]]:
    return (
        encode_items(tokenizer, [(prompt, chosen) for prompt, chosen, _ in pairs]),
        encode_items(tokenizer, [(prompt, rejected) for prompt, _, rejected in pairs]),
    )


def _run(errand: Errand, desk: Desk, learner: Learner, lesson: Lesson, progress: Progress) -> None:
    recipe, first = errand.recipe, progress.step
    micro = progress.micro_batch or recipe.batch
    left = [place for step in lesson.steps[first:] for place in step]

    def after(step: int, logs: Logs) -> None:
        progress.step = step
        progress.losses.append(logs["loss"])

    def save(step: int) -> None:
        checkpoint.write_step(desk.folder / "steps", step, learner.groups(whole=False), progress.to_json())

    trainer = RewardTrainer(
        model=learner.model,
        args=RewardConfig(
            str(desk.folder / "trl"), per_device_train_batch_size=micro,
            gradient_accumulation_steps=recipe.batch // micro, train_sampling_strategy="sequential", max_length=None,
            **quiet_arguments(desk.device, len(lesson.steps) - first, errand.seed),
        ),
        train_dataset=Dataset.from_dict({
            "chosen_ids": [[*lesson.chosen[place][0], *lesson.chosen[place][1]] for place in left],
            "rejected_ids": [[*lesson.rejected[place][0], *lesson.rejected[place][1]] for place in left],
        }),
        processing_class=learner.tokenizer,
        optimizers=(learner.optimizer, schedule(recipe, first, learner.optimizer)),
        callbacks=[Watch(errand.seed, first, len(lesson.steps), errand.save_steps, after, save, desk.progress)],
    )
    run_trainer(trainer)


def _finish(desk: Desk, learner: Learner, lesson: Lesson, progress: Progress) -> Produced:
    model, pad = learner.model.eval(), pad_id(learner.tokenizer)
    r_ref = float(np.mean(_rewards(model, lesson.rejected, pad)))
    accuracy = _accuracy(model, lesson, pad)
    made = desk.folder / "model"
    replace(learner, model=model.body).save(made)
    save_file({"weight": model.head.weight.detach().cpu().clone()}, made / HEAD, {"format": "pt"})
    (made / ABOUT).write_text(json.dumps({"r_ref": r_ref}))
    used = [place for step in lesson.steps for place in step]
    tokens = lesson.count(used)
    values = {
        "pairs": len(lesson.chosen) - len(lesson.held_out), "steps": len(lesson.steps), "tokens": tokens,
        "held_out": len(lesson.held_out), "accuracy": accuracy, "r_ref": r_ref, "loss_first": progress.losses[0],
        "loss_last": progress.losses[-1], "curve": thinned(progress.losses), "stopped": lesson.stopped,
        "learned": {"micro_batch": progress.micro_batch} if progress.micro_batch else {},
    }
    return Produced(values, {"model": made}, items=len(used), tokens=tokens)


def _accuracy(model: RewardModel, lesson: Lesson, pad: int) -> float:
    """Over the pairs held out; a tie is no hit."""
    better = _rewards(model, [lesson.chosen[place] for place in lesson.held_out], pad)
    worse = _rewards(model, [lesson.rejected[place] for place in lesson.held_out], pad)
    return sum(b > w for b, w in zip(better, worse, strict=True)) / len(better) if better else 0.0


@torch.no_grad()
def _rewards(model: RewardModel, rows: Sequence[Encoded], pad: int) -> list[float]:
    """r of each row, without gradients."""
    device = model.head.weight.device
    values: list[float] = []
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        some = [[*prompt, *answer] for prompt, answer in rows[begin:begin + ROWS_AT_ONCE]]
        longest = max(map(len, some))
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in some], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in some], device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            values += model(ids, mask).logits.squeeze(-1).float().tolist()
    return values
