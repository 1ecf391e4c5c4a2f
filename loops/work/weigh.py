"""The job "weigh": what each source of training data, taken alone, does to the target. It pays for the mixture.

inputs   model, seal, data:<source> ...
params   recipe, tasks (targets), steps, items, max_tokens (None: no cap)
values   weighed {source: {"gain", "error", "rows", "tokens"}}, steps, tokens

From the same model each source is learned for a few steps, the others left out, with the recipe's batch and full
learning rate. "gain" is by how much q, the chance that sampling gives the reference, rose on fresh search items of the
targets, "error" its standard error over those items. No loss says that: what teaches wrong answers is learned as fast
as what teaches right ones, and wrong answers to the target's own questions lower the loss on the right ones, too,
because they show what an answer looks like.

What was learned is thrown away. Steps that go beyond `max_tokens`, all sources together, are not done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel

from loops.pipeline.recipe import Recipe
from loops.work.learner import Learner, load_learner
from loops.work.rows import IGNORED, Places, Tokens, answer_loss, mixed, read_rows, to_device, tokenise
from loops.work.watch import CLIP, Diverged, halving
from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.scoring import expected_success
from safety.yardstick.tasks import Seal, draw_some
from state.jobs import Desk, JobSpec, Produced
from state.records import seed_from


def weigh(spec: JobSpec, desk: Desk) -> Produced:
    """Learn each source alone and throw it away. Raises Diverged, and ValueError for bad inputs."""
    torch.set_num_threads(desk.threads)
    recipe = Recipe.from_json(spec.params["recipe"])
    return halving(recipe.batch, lambda micro: _attempt(spec, desk, recipe, micro or recipe.batch))


def _attempt(spec: JobSpec, desk: Desk, recipe: Recipe, micro: int) -> Produced:
    learner = load_learner(desk.inputs["model"], recipe, spec.seed, desk.device)
    rows = read_rows(desk.inputs)
    lessons = {
        name: mixed(rows, {name: 1.0}, recipe.batch, range(spec.params["steps"]), spec.seed)
        for name, held in rows.sources.items() if len(held)
    }
    needed = [place for places in lessons.values() for place in places.reshape(-1).tolist()]
    tokens = tokenise(rows, needed, learner.tokenizer)
    steps = _fitting(tokens, lessons, spec.params["max_tokens"])
    if not steps:
        return Produced({"steps": 0, "tokens": 0, "weighed": {}})
    probe = _probe(spec, desk)
    before = _q(learner, probe)
    start = {name: parameter.detach().clone() for name, parameter in learner.learning()}
    weighed: dict[str, dict[str, float]] = {}
    used = 0
    for number, (name, places) in enumerate(lessons.items()):
        desk.progress(number / len(lessons), name)
        _begin_again(learner, start)
        for step in range(steps):
            torch.manual_seed(seed_from(spec.seed, "step", step))
            _step(learner, tokens, places[step].tolist(), micro)
        rise = _q(learner, probe) - before
        if not np.isfinite(rise).all():
            raise Diverged(f"the loss is not finite after {steps} steps on {name}")
        weighed[name] = {
            "gain": float(rise.mean()), "error": float(rise.std(ddof=1) / math.sqrt(len(rise))),
            "rows": steps * recipe.batch, "tokens": tokens.count(places[:steps].reshape(-1).tolist()),
        }
        used += int(weighed[name]["tokens"])
    return Produced({"steps": steps, "tokens": used, "weighed": weighed}, items=len(probe), tokens=used)


def _fitting(tokens: Tokens, lessons: dict[str, Places], max_tokens: int | None) -> int:
    """How many steps of every source use no more than `max_tokens` together."""
    if not lessons:
        raise ValueError("there are no rows to weigh: every data source is empty")
    each = [[tokens.count(row) for row in places.tolist()] for places in lessons.values()]
    used = np.cumsum(np.sum(each, axis=0))
    return len(used) if max_tokens is None else int(np.searchsorted(used, max_tokens, "right"))


def _probe(spec: JobSpec, desk: Desk) -> list[Item]:
    """Fresh search items of every target."""
    tasks, seal = [TaskSpec.from_json(body) for body in spec.params["tasks"]], Seal.of(desk.inputs)
    share = max(2, spec.params["items"] // len(tasks))
    return [item for task in tasks for item in draw_some(task, share, seed_from(spec.seed, "probe", task.name), seal)]


def _q(learner: Learner, probe: Sequence[Item]) -> npt.NDArray[np.float64]:
    """q, item by item."""
    bare = learner.model.get_base_model() if isinstance(learner.model, PeftModel) else learner.model
    bare.eval()
    with torch.no_grad():
        q = expected_success(bare, learner.tokenizer, probe).astype(np.float64)
    bare.train()
    return q


def _begin_again(learner: Learner, start: dict[str, torch.Tensor]) -> None:
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
