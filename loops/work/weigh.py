"""The job "weigh": what each source of training data, taken alone, does to the target. It pays for the mixture.

inputs   model, seal, data:<source> ...
params   recipe, tasks (targets), steps, draws, items, max_tokens (None: no cap)
values   weighed {source: {"gain", "error", "rows", "tokens"}}, steps, draws, tokens

From the same model each source is learned for a few steps, the others left out, with the recipe's batch and full
learning rate. "gain" is by how much the model's certainty of the reference rose on fresh search items of the targets:
exp(log q / sqrt(n)), where q is the chance that sampling gives the reference and n its length in tokens. q itself hangs
on the few items that are nearly known, and after a few steps that is mostly noise; the loss, and in part the geometric
mean exp(log q / n), hang on those that are not known at all, and wrong answers to the target's own questions make them
better, too, because they show what an answer looks like. In between both kinds count (docs/log.md has the figures).

Where the best source does not lead every other by `CLEAR` standard errors over items, all are learned again from the
start on other rows, up to `draws` times. "error" is the standard error over items and, of several draws, over them.
What was learned is thrown away. Steps that go beyond `max_tokens`, all sources together, are not done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel

from loops.pipeline.recipe import Recipe
from loops.work.learner import Learner, load_learner
from loops.work.rows import IGNORED, Places, Tokens, answer_log_p, answer_loss, mixed, read_rows, to_device, tokenise
from loops.work.watch import CLIP, Diverged, halving
from safety.yardstick.items import TaskSpec
from safety.yardstick.scoring import Encoded, encode_items, pad_id
from safety.yardstick.tasks import Seal, draw_some
from state.jobs import Desk, JobSpec, Produced
from state.records import seed_from

CLEAR: Final = 3.0
"""Over items alone; what the draw of rows does comes on top, so that two would be too few."""

Values = npt.NDArray[np.float64]


def weigh(spec: JobSpec, desk: Desk) -> Produced:
    """Learn each source alone and throw it away. Raises Diverged, and ValueError for bad inputs."""
    torch.set_num_threads(desk.threads)
    recipe = Recipe.from_json(spec.params["recipe"])
    return halving(recipe.batch, lambda micro: _attempt(spec, desk, recipe, micro or recipe.batch))


def _attempt(spec: JobSpec, desk: Desk, recipe: Recipe, micro: int) -> Produced:
    learner = load_learner(desk.inputs["model"], recipe, spec.seed, desk.device)
    rows, most = read_rows(desk.inputs), spec.params["draws"]
    lessons = {
        name: mixed(rows, {name: 1.0}, recipe.batch, range(most * spec.params["steps"]), spec.seed)
        for name, held in rows.sources.items() if len(held)
    }
    needed = [place for places in lessons.values() for place in places.reshape(-1).tolist()]
    tokens = tokenise(rows, needed, learner.tokenizer)
    steps, draws = _fitting(tokens, lessons, spec.params)
    if not steps:
        return Produced({"steps": 0, "draws": 0, "tokens": 0, "weighed": {}})
    probe = _probe(spec, desk, learner)
    before = _certainty(learner, probe)
    start = {name: parameter.detach().clone() for name, parameter in learner.learning()}
    rises: dict[str, list[Values]] = {name: [] for name in lessons}
    for draw in range(draws):
        for number, (name, places) in enumerate(lessons.items()):
            desk.progress((draw + number / len(lessons)) / draws, name)
            _begin_again(learner, start)
            for step in range(draw * steps, (draw + 1) * steps):
                torch.manual_seed(seed_from(spec.seed, "step", step))
                _step(learner, tokens, places[step].tolist(), micro)
            rise = _certainty(learner, probe) - before
            if not np.isfinite(rise).all():
                raise Diverged(f"the loss is not finite after {steps} steps on {name}")
            rises[name].append(rise)
        if _told_apart(rises):
            break
    weighed = {
        name: {
            **_mean(found), "rows": len(found) * steps * recipe.batch,
            "tokens": tokens.count(lessons[name][:len(found) * steps].reshape(-1).tolist()),
        }
        for name, found in rises.items()
    }
    used = sum(int(report["tokens"]) for report in weighed.values())
    values = {"steps": steps, "draws": draw + 1, "tokens": used, "weighed": weighed}
    return Produced(values, items=len(probe), tokens=used)


def _fitting(tokens: Tokens, lessons: Mapping[str, Places], params: Mapping[str, int | None]) -> tuple[int, int]:
    """(steps of a draw, draws) of every source that use no more than the tokens together: one draw in full comes before
    a second one.
    """
    if not lessons:
        raise ValueError("there are no rows to weigh: every data source is empty")
    asked, draws, most = params["steps"], params["draws"], params["max_tokens"]
    assert asked is not None and draws is not None
    each = [[tokens.count(row) for row in places.tolist()] for places in lessons.values()]
    used = np.cumsum(np.sum(each, axis=0))
    fit = len(used) if most is None else int(np.searchsorted(used, most, "right"))
    return min(asked, fit), min(draws, max(1, fit // asked))


def _told_apart(rises: Mapping[str, Sequence[Values]]) -> bool:
    """Whether the best source leads each other by `CLEAR` standard errors over items."""
    best, *others = sorted((np.mean(found, axis=0) for found in rises.values()), key=lambda rise: -rise.mean())
    leads = [best - other for other in others]
    return all(lead.mean() > CLEAR * _stderr(lead) for lead in leads)


def _mean(draws: Sequence[Values]) -> dict[str, float]:
    """The gain over draws, and its standard error over items and over draws together."""
    over_draws = _stderr(np.array([rise.mean() for rise in draws])) if len(draws) > 1 else 0.0
    rise = np.mean(draws, axis=0)
    return {"gain": float(rise.mean()), "error": math.hypot(_stderr(rise), over_draws)}


def _stderr(values: Values) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _probe(spec: JobSpec, desk: Desk, learner: Learner) -> list[Encoded]:
    """Fresh search items of every target."""
    tasks, seal = [TaskSpec.from_json(body) for body in spec.params["tasks"]], Seal.of(desk.inputs)
    share = max(2, spec.params["items"] // len(tasks))
    items = [item for task in tasks for item in draw_some(task, share, seed_from(spec.seed, "probe", task.name), seal)]
    return encode_items(learner.tokenizer, [(item.prompt, item.answer) for item in items])


def _certainty(learner: Learner, probe: Sequence[Encoded]) -> Values:
    """exp(log q / sqrt(n)), item by item."""
    bare = learner.model.get_base_model() if isinstance(learner.model, PeftModel) else learner.model
    bare.eval()
    with torch.no_grad():
        found = answer_log_p(bare, probe, pad_id(learner.tokenizer), learner.device)
    bare.train()
    return np.exp([sum(values) / math.sqrt(len(values)) for values in found])


def _begin_again(learner: Learner, start: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in learner.learning():
            parameter.copy_(start[name])
    learner.optimizer.state.clear()


def _step(learner: Learner, tokens: Tokens, places: Sequence[int], micro: int) -> None:
    """One optimiser step on these rows, `micro` of them at a time."""
    learner.optimizer.zero_grad()
    batches = [tokens.batch(places[begin:begin + micro]) for begin in range(0, len(places), micro)]
    labelled = [int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches]
    for batch, count in zip(batches, labelled, strict=True):
        with torch.autocast(learner.device, torch.bfloat16, enabled=learner.device == "cuda"):
            loss = answer_loss(learner.model, to_device(batch, learner.device))
        (loss * (count / sum(labelled))).backward()                                    # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_([parameter for _, parameter in learner.learning()], CLIP)
    learner.optimizer.step()
