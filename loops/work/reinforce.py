"""The job "segment": some steps of group-relative policy gradient with a verifier, under one shaping, with TRL.

inputs   model, checkpoint (to carry on from `from_step`), seal, reward_model (for the learned feature),
         data:<source> ... (replay), paused (to go on within the segment)
params   recipe, shaping, tasks (targets), steps, from_step, evidence, probe_seed, probe_items, save_steps,
         proxy_strength, references, max_tokens (None: no cap), pause (None: in one go),
         levels {task: config of its questions}
outputs  model (adapter merged), checkpoint, checkpoint:paused (where it paused)
values   evidence, success, groups, mixed_groups, proxy, truth, shaping_trace, rank_correlation, canaries, disagreement,
         q_before, q_after, kl, entropy, tokens, steps, cut, stopped, learned, prompts,
         asked {task: {"prompts", "success"}},
         replayed {source: {"rows", "tokens"}}

Without references (tasks in which several answers are right) there is no q. "canaries" names the junk answers that a
target's verifier takes for right; "disagreement" is the share of the answers about which a second verifier is of
another mind (None: no target has one).

A step is begun only if it stays within `max_tokens` however long its answers become; "cut" counts the steps that were
left undone for that. Where not even one fits, there are no outputs and "steps" is 0.

A segment may pause after `pause` of its steps: its values are those of the steps so far, and the rest, which takes
"checkpoint:paused" as `paused`, ends with the bits and the values of a segment that never paused. Tokens and items of
the result count what each of the two did itself, "tokens" and `max_tokens` all from the segment's first step on.

R = r0 + B sum a_k c_k (phi_k - 1/2), divided by .3 and not by a deviation. The target is never shown: prompts are
fresh search items, references only tell features apart and measure q. A pure function of the spec and its inputs.
Killed anywhere and run again in the same folder, it goes on from its last verified checkpoint and ends with the same
bits: every optimiser step samples a batch of its own, so that no step needs answers from before a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from loops.pipeline.recipe import Recipe
from loops.reward.features import ENTROPY_BAND, LEARNED, USUAL, in_entropy_band
from loops.reward.shaping import Evidence, Shaping
from loops.work import checkpoint
from loops.work.checkpoint import Checkpoint
from loops.work.exercises import Exercises, plain, set_exercises
from loops.work.learner import Learner, load_learner, schedule, standing, take_up
from loops.work.marking import Marking, Phis, Question, Record
from loops.work.replay import DATA_ROWS, Replay
from loops.work.reward_model import load_judge
from loops.work.rows import answer_entropy, answer_log_p, mixed, read_rows, tokenise, used_of
from loops.work.stops import out_of_tokens, reason_to_stop
from loops.work.watch import Logs, Watch, halving, quiet_arguments, run_trainer
from safety.yardstick.items import TaskSpec
from safety.yardstick.scoring import encode_items, expected_success
from safety.yardstick.tasks import Seal
from safety.yardstick.verifiers import canaries
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject, seed_from

PROBE_ITEMS = 256
SAVE_STEPS = 20
KL_STEPS = 20
KL_ANSWERS = 16                        # of the first step's, evenly from its groups: enough for a limit in whole nats
CANARY_ITEMS = 4                       # per task: junk answers are tried on so many questions
PROXY_STRENGTH = 0.4
SPARE_TOKENS = 2
REFERENCE = "ref"                      # the copy of the adapter that TRL makes for a KL term


@dataclass(frozen=True, slots=True)
class Errand:
    """The spec's parameters, read once."""

    recipe: Recipe
    shaping: Shaping
    tasks: list[TaskSpec]
    steps: range
    evidence: Evidence
    probe_seed: int
    probe_items: int
    save_steps: int
    proxy_strength: float
    references: bool
    max_tokens: int | None
    pause: int | None
    levels: Mapping[str, JsonObject]
    seed: int

    @property
    def question_seed(self) -> int:
        """A later segment asks other questions, whatever seed it has."""
        return seed_from(self.seed, "questions", self.steps.start)

    def pauses(self, step: int) -> bool:
        return self.pause is not None and step == self.steps.start + self.pause

    @classmethod
    def of(cls, spec: JobSpec) -> Errand:
        params = spec.params
        first = params["from_step"]
        if params["steps"] < 1:
            raise ValueError(f"a segment of {params['steps']} steps was asked for")
        if params.get("pause") is not None and params["pause"] not in range(1, params["steps"]):
            raise ValueError(f"a segment of {params['steps']} steps cannot pause after {params['pause']}")
        evidence, references = params.get("evidence"), params.get("references", True)
        return cls(
            Recipe.from_json(params["recipe"]), Shaping.from_json(params["shaping"]),
            [TaskSpec.from_json(body) for body in params["tasks"]], range(first, first + params["steps"]),
            Evidence.from_json(evidence) if evidence else Evidence.empty(USUAL), params["probe_seed"],
            params.get("probe_items", PROBE_ITEMS) if references else 0, params.get("save_steps", SAVE_STEPS),
            params.get("proxy_strength", PROXY_STRENGTH), references, params.get("max_tokens"), params.get("pause"),
            params.get("levels", {}), spec.seed,
        )


class Reinforced(GRPOTrainer):  # type: ignore[misc]
    """GRPO with more to learn in each step: `extra` gives the loss that is added once, however the batch is cut."""

    extra: Callable[[Any], Tensor | None]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        extra = self.extra(model)
        loss: Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss if extra is None else loss + extra


def segment(spec: JobSpec, desk: Desk) -> Produced:
    """Run `steps` steps from `from_step` on. Raises Diverged, TaskError and ValueError for bad inputs."""
    torch.set_num_threads(desk.threads)
    errand = Errand.of(spec)
    return halving(errand.recipe.completions, lambda micro_batch: _attempt(errand, desk, micro_batch))


def _attempt(errand: Errand, desk: Desk, micro_batch: int) -> Produced:
    learner = load_learner(desk.inputs["model"], errand.recipe, errand.seed, desk.device)
    exercises = set_exercises(
        errand.tasks, Seal.of(desk.inputs), learner.tokenizer, errand.recipe.batch * len(errand.steps),
        errand.question_seed, errand.probe_items, errand.probe_seed, errand.levels,
    )
    given = take_up(learner, desk.inputs.get("checkpoint"), errand.recipe, errand.steps.start)
    paused = _paused(errand, desk)
    found = checkpoint.latest(desk.folder / "steps") or paused
    before = (len(paused.state["truths"]), paused.state["tokens"]) if paused else (0, 0)
    record = Record(**found.state) if found else Record(
        errand.steps.start, errand.evidence.to_json(), given.get("right", [])
    )
    replay = _replay(errand, desk, learner, record)
    if not found:
        if not _affords(errand, exercises, replay, record):
            return Produced({"steps": 0, "tokens": 0, "stopped": out_of_tokens(errand.max_tokens, 0)})
        record.q_before = _expected(learner, exercises)
    record.micro_batch = micro_batch or record.micro_batch
    if not record.stopped and not errand.pauses(record.step):
        _run(errand, desk, learner, exercises, replay, record, found)
    elif found:
        learner.restore(found)
    return _finish(errand, desk, learner, exercises, record, before)


def _paused(errand: Errand, desk: Desk) -> Checkpoint | None:
    """Where the segment paused before. ValueError where that is torn, or no moment of this segment."""
    if "paused" not in desk.inputs:
        return None
    found = checkpoint.read(desk.inputs["paused"])
    if found is None or found.state["step"] not in errand.steps[1:] or found.state["stopped"]:
        raise ValueError("the segment did not pause within these steps, or the files of its pause are torn")
    return found


def _affords(errand: Errand, exercises: Exercises, replay: Replay, record: Record) -> bool:
    """Whether the next step stays within the cap of tokens, even if every answer becomes as long as it may."""
    if errand.max_tokens is None:
        return True
    recipe = errand.recipe
    first = recipe.batch * (record.step - errand.steps.start)
    prompts = [len(question.ids) for question in exercises.questions[first:first + recipe.batch]]
    answer = exercises.longest + SPARE_TOKENS
    asked = recipe.group * sum(prompts) + recipe.completions * answer
    again = replay.most_tokens(record.step, max(prompts) + answer)
    return record.tokens + asked + again <= errand.max_tokens


def _run(
    errand: Errand, desk: Desk, learner: Learner, exercises: Exercises, replay: Replay, record: Record,
    found: Checkpoint | None,
) -> None:
    recipe, first, batch = errand.recipe, record.step, errand.recipe.batch
    left = range(batch * (first - errand.steps.start), len(exercises.questions))
    marking = Marking(
        exercises.questions, recipe.group, frozenset({int(learner.tokenizer.eos_token_id)}), errand.shaping,
        errand.proxy_strength, record, errand.references, _measures(errand, desk, learner),
    )
    pending = True

    def extra(model: Any) -> Tensor | None:
        nonlocal pending
        if not pending:
            return None
        pending = False
        if not record.start:
            record.start = marking.latest[::max(1, len(marking.latest) // KL_ANSWERS)]
            record.start_log_p = _log_p(learner, record)
        return replay.loss(model, record.step)

    def after(step: int, logs: Logs) -> str | None:
        nonlocal pending
        pending = True
        record.step = step
        record.tokens += replay.tokens
        replay.tokens = 0
        record.entropy.append(logs["entropy"])
        record.clipped.append(logs["completions/clipped_ratio"])
        ahead = errand.steps.stop - step
        short = ahead > 0 and not _affords(errand, exercises, replay, record)
        if step % KL_STEPS == 0 or ahead == 0 or short:
            record.kl.append(_kl(learner, record))
        record.stopped = reason_to_stop(record.flat, record.clipped, record.entropy, record.kl)
        if short and record.stopped is None:
            record.stopped, record.cut = out_of_tokens(errand.max_tokens, len(record.truth)), ahead
        return "paused" if errand.pauses(step) else record.stopped

    def save(step: int) -> None:
        checkpoint.write_step(desk.folder / "steps", step, learner.groups(whole=False), record.to_json())

    trainer = Reinforced(
        model=learner.model,
        reward_funcs=[marking],
        args=_arguments(errand, desk, exercises, record, len(left) // batch),
        train_dataset=Dataset.from_dict({
            "prompt": [exercises.questions[place].item.prompt for place in left], "question": list(left),
        }),
        processing_class=plain(learner.tokenizer),
        optimizers=(learner.optimizer, schedule(recipe, first, learner.optimizer)),
        callbacks=[Watch(errand.seed, first, errand.steps.stop, errand.save_steps, after, save, desk.progress)],
    )
    trainer.extra = extra
    if found:
        learner.restore(found)         # only now: the trainer's KL term refers to where the segment began
    run_trainer(trainer)
    if isinstance(learner.model, PeftModel) and REFERENCE in learner.model.peft_config:
        learner.model.delete_adapter(REFERENCE)


def _measures(errand: Errand, desk: Desk, learner: Learner) -> dict[str, Phis]:
    """What measures the entropy band, and the learned feature where a reward model is among the inputs. ValueError
    where that is paid for without one.
    """
    def entropy_band(answers: Sequence[tuple[str, str]]) -> list[float]:
        rows = encode_items(learner.tokenizer, answers)
        with torch.no_grad():
            found = answer_entropy(_bare(learner), rows, int(learner.tokenizer.pad_token_id), learner.device)
        return [in_entropy_band(nats) for nats in found]

    if "reward_model" in desk.inputs:
        return {ENTROPY_BAND: entropy_band, LEARNED: load_judge(desk.inputs["reward_model"], desk.device).phis}
    if LEARNED in errand.shaping.weights:
        raise ValueError("a shaping that pays for the learned feature needs a reward model")
    return {ENTROPY_BAND: entropy_band}


def _arguments(errand: Errand, desk: Desk, exercises: Exercises, record: Record, steps: int) -> GRPOConfig:
    recipe = errand.recipe
    micro = record.micro_batch or recipe.completions
    return GRPOConfig(
        str(desk.folder / "trl"), per_device_train_batch_size=micro,
        gradient_accumulation_steps=recipe.completions // micro, num_generations=recipe.group,
        max_completion_length=exercises.longest + SPARE_TOKENS, temperature=recipe.temperature, beta=recipe.beta,
        scale_rewards="none", loss_type="dapo", shuffle_dataset=False,
        **quiet_arguments(desk.device, steps, errand.seed),
    )


def _replay(errand: Errand, desk: Desk, learner: Learner, record: Record) -> Replay:
    rows = read_rows(desk.inputs)
    recipe, left = errand.recipe, range(record.step, errand.steps.stop)
    seed = seed_from(errand.seed, "replay")
    places = mixed(rows, recipe.shares(rows.sources) if rows.sources else {}, DATA_ROWS, left, seed)
    data = tokenise(rows, places.reshape(-1).tolist(), learner.tokenizer)
    return Replay(
        data, places, left.start, recipe.replay, recipe.success_replay, seed, desk.device, lambda: record.right,
    )


def _replayed(errand: Errand, desk: Desk, learner: Learner, record: Record) -> JsonObject:
    """How much of each source the steps that were done learned again."""
    rows, recipe, done = read_rows(desk.inputs), errand.recipe, range(errand.steps.start, record.step)
    if not rows.sources or recipe.replay <= 0:
        return {}
    places = mixed(rows, recipe.shares(rows.sources), DATA_ROWS, done, seed_from(errand.seed, "replay"))
    return used_of(rows, tokenise(rows, places.reshape(-1).tolist(), learner.tokenizer), places.reshape(-1).tolist())


def _finish(
    errand: Errand, desk: Desk, learner: Learner, exercises: Exercises, record: Record, before: tuple[int, int]
) -> Produced:
    outputs = {"model": desk.folder / "model", "checkpoint": desk.folder / "checkpoint"}
    q_after = _expected(learner, exercises)
    state = standing(errand.recipe, record.step) | {"right": record.right}
    checkpoint.write(outputs["checkpoint"], learner.groups(whole=True), state)
    if errand.pauses(record.step) and not record.stopped:
        outputs["checkpoint:paused"] = desk.folder / "paused"
        checkpoint.write(outputs["checkpoint:paused"], learner.groups(whole=False), record.to_json())
    learner.save(outputs["model"])
    values = {
        "evidence": record.evidence, "success": sum(record.truths) / len(record.truths), "steps": len(record.truth),
        "cut": record.cut, "groups": record.groups, "mixed_groups": record.mixed_groups, "proxy": record.proxy,
        "truth": record.truth, "shaping_trace": record.bonus, "rank_correlation": record.rank_correlation,
        "canaries": _canaries(exercises), "disagreement": record.disagreement, "q_before": record.q_before,
        "q_after": q_after, "kl": record.kl[-1] if record.kl else 0.0, "entropy": record.entropy,
        "tokens": record.tokens,
        "stopped": record.stopped, "learned": {"micro_batch": record.micro_batch} if record.micro_batch else {},
        "prompts": errand.recipe.batch * len(record.truth), "asked": _asked(errand, record),
        "replayed": _replayed(errand, desk, learner, record),
    }
    return Produced(values, outputs, items=len(record.truths) - before[0], tokens=record.tokens - before[1])


def _asked(errand: Errand, record: Record) -> JsonObject:
    """Of each task, how many questions were asked and how many of their answers were right: the tasks take turns."""
    group, tasks = errand.recipe.group, errand.tasks
    right = [fmean(record.truths[begin:begin + group]) for begin in range(0, len(record.truths), group)]
    answered = {task.name: right[number::len(tasks)] for number, task in enumerate(tasks)}
    return {name: {"prompts": len(each), "success": fmean(each)} for name, each in answered.items() if each}


def _canaries(exercises: Exercises) -> list[str]:
    """Junk that the verifiers of the first questions, each task's among them, take for right."""
    by_verifier: dict[int, list[Question]] = {}
    for question in exercises.questions:
        by_verifier.setdefault(id(question.verifier), []).append(question)
    return [
        failure for asked in by_verifier.values()
        for failure in canaries(asked[0].verifier, [question.item for question in asked[:CANARY_ITEMS]])
    ]


def _expected(learner: Learner, exercises: Exercises) -> list[float]:
    """q, item by item: how often sampling would give the reference."""
    bare = _bare(learner)
    bare.eval()
    q = [float(value) for value in expected_success(bare, learner.tokenizer, exercises.probe)]
    bare.train()
    return q


def _kl(learner: Learner, record: Record) -> float:
    """KL(start || now) in nats a token, on some of the segment's first answers: mean of r - 1 - ln r, where r is
    p_now / p_start.
    """
    differences = [
        now - then
        for mine, theirs in zip(_log_p(learner, record), record.start_log_p, strict=True)
        for now, then in zip(mine, theirs, strict=True)
    ]
    ratio = torch.tensor(differences, dtype=torch.float64)
    return float((ratio.exp() - 1 - ratio).mean())


def _log_p(learner: Learner, record: Record) -> list[list[float]]:
    with torch.no_grad():
        return answer_log_p(_bare(learner), record.start, int(learner.tokenizer.pad_token_id), learner.device)


def _bare(learner: Learner) -> Any:
    """The causal model itself, the adapter's layers inside it."""
    return learner.model.get_base_model() if isinstance(learner.model, PeftModel) else learner.model
