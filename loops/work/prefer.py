"""The job "prefer": direct preference optimisation (2305.18290) on pairs of answers, with TRL.

Inputs, params, outputs and values are those of `loops.work.course`, and the input "reference" is the model that the
training holds on to: the one with which the configuration's first rung began, whichever rung this is. A step is `batch`
pairs; "tokens" counts both rows of each. The sources are preferences, others give no pairs.

Log-probabilities under the reference are computed once, before the model that learns is loaded, and kept in the job's
folder: there is never a second model in memory, and an adapter and whole weights are held to the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import logsigmoid
from trl import DPOConfig, DPOTrainer

from loops.pipeline.recipe import Recipe
from loops.work import checkpoint
from loops.work.course import Errand, take_course
from loops.work.learner import load_model
from loops.work.rows import IGNORED, Batch, Rows, Tokens, answer_log_p, halves, read_pairs, tokenise
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject

REFERENCE = "reference"
COPY = "ref"                           # the copy of the adapter that TRL makes as a reference


@dataclass(frozen=True, slots=True)
class Pairs:
    """Some pairs by their place: the tokens of both rows, and ln p of each answer under the reference, by row."""

    tokens: Tokens
    reference: Mapping[int, float] = field(default_factory=dict)

    def batch(self, places: Iterable[int]) -> Batch:
        """input_ids, attention_mask and completion_mask, (2 pairs, longest), the chosen answers first, and ln p of both
        under the reference, (pairs,) each.
        """
        rows = halves(places)
        padded, known = self.tokens.batch(rows), torch.tensor([self.reference[row] for row in rows])
        chosen, rejected = known.chunk(2)
        return {
            "input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"],
            "completion_mask": (padded["labels"] != IGNORED).long(),
            "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
        }

    def count(self, places: Iterable[int]) -> int:
        return self.tokens.count(halves(places))


class Preferring(DPOTrainer):  # type: ignore[misc]
    """DPO on rows that are tokens already, and whose log-probabilities under the reference are known."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset


class ByPreference:
    """A pair is learned by how much further apart its answers are than under the reference."""

    def read(self, inputs: Mapping[str, Path]) -> Rows:
        return read_pairs(inputs)

    def tokenise(self, rows: Rows, places: Iterable[int], tokenizer: Any) -> Pairs:
        return Pairs(tokenise(rows, halves(places), tokenizer))

    def ready(self, material: Pairs, places: Sequence[int], errand: Errand, desk: Desk) -> Pairs:
        rows = sorted(set(halves(places)))
        return replace(material, reference=dict(zip(rows, _reference(material, rows, errand, desk), strict=True)))

    def loss(self, model: Any, batch: Batch, recipe: Recipe) -> Tensor:
        """-ln sigmoid(beta d), whichever loss is trained on: so sources can be told apart by it."""
        known = torch.cat([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])
        chosen, rejected = (_answers_log_p(model, batch) - known).chunk(2)
        return -logsigmoid(recipe.beta * (chosen - rejected)).mean()

    def trainer(self, recipe: Recipe, arguments: JsonObject, common: Mapping[str, Any]) -> Preferring:
        model = common["model"]
        adapted = isinstance(model, PeftModel)
        trainer = Preferring(args=DPOConfig(
            **arguments, beta=recipe.beta, loss_type=[str(recipe.loss)], precompute_ref_log_probs=not adapted,
        ), **common)
        trainer.precompute_ref_logps = True      # said beforehand it would have all frozen weights hashed for nothing
        if adapted and COPY in model.peft_config:
            model.delete_adapter(COPY)
        return trainer


def prefer(spec: JobSpec, desk: Desk) -> Produced:
    """Run the steps from `from_step` to `to_step` of a recipe. Raises Diverged, and ValueError for bad inputs."""
    return take_course(spec, desk, ByPreference())


def _reference(pairs: Pairs, rows: Sequence[int], errand: Errand, desk: Desk) -> list[float]:
    """ln p of the answer of each row under the reference, computed once for all attempts at the job."""
    folder = desk.folder / REFERENCE
    found = checkpoint.read(folder)
    if found is None:
        model = load_model(desk.inputs[REFERENCE], errand.recipe, desk.device).to(desk.device).eval()
        with torch.no_grad(), torch.autocast(desk.device, torch.bfloat16, enabled=desk.device == "cuda"):
            tokens = answer_log_p(model, [pairs.tokens.rows[row] for row in rows], pairs.tokens.pad, desk.device)
        log_p = torch.tensor([sum(answer) for answer in tokens], dtype=torch.float64)
        checkpoint.write(folder, {"log_p": {"log_p": log_p}}, {})
        return [float(value) for value in log_p]
    return [float(value) for value in found.tensors("log_p")["log_p"]]


def _answers_log_p(model: Any, batch: Batch) -> Tensor:
    """ln p of the answer of each row, (rows,); the head runs only where some row has an answer."""
    asked = batch["completion_mask"][:, 1:].any(dim=0).nonzero().flatten()
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=asked, use_cache=False
    ).logits
    chosen, wanted = batch["input_ids"][:, 1:][:, asked], batch["completion_mask"][:, 1:][:, asked]
    log_p: Tensor = logits.float().log_softmax(dim=-1).gather(2, chosen[:, :, None]).squeeze(2)
    return (log_p * wanted).sum(dim=1)
