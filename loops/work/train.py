"""The job "train": supervised steps on the answers of rows. Inputs, params, outputs and values: `loops.work.course`.

Sources of preferences give it no rows. Loss is the cross-entropy of the answers and their end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from trl import SFTConfig, SFTTrainer

from loops.pipeline.recipe import Recipe
from loops.work.course import Errand, take_course
from loops.work.rows import Batch, Rows, Tokens, answer_loss, read_rows, tokenise
from loops.work.watch import Diverged
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject

__all__ = ["Diverged", "train"]


class Supervised:
    """A row is learned by its answer's cross-entropy."""

    def read(self, inputs: Mapping[str, Path]) -> Rows:
        return read_rows(inputs)

    def tokenise(self, rows: Rows, places: Iterable[int], tokenizer: Any) -> Tokens:
        return tokenise(rows, places, tokenizer)

    def ready(self, material: Tokens, places: Sequence[int], errand: Errand, desk: Desk) -> Tokens:
        return material

    def loss(self, model: Any, batch: Batch, recipe: Recipe) -> Tensor:
        return answer_loss(model, batch)

    def trainer(self, recipe: Recipe, arguments: JsonObject, common: Mapping[str, Any]) -> SFTTrainer:
        return SFTTrainer(args=SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True}), **common)


def train(spec: JobSpec, desk: Desk) -> Produced:
    """Run the steps from `from_step` to `to_step` of a recipe. Raises Diverged, and ValueError for bad inputs."""
    return take_course(spec, desk, Supervised())
