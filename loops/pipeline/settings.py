"""The settings of the pipeline loop: one frozen tree, every value with a default."""

from __future__ import annotations

from dataclasses import dataclass

from loops.pipeline.recipe import DPO, GRPO, SFT, Recipe, Stage
from loops.pipeline.space import RANGES, Ranges, Space
from loops.pipeline.tuner import Ladder, Sampler


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """What the operator chooses.

    `stages` are tried in this order: on a model that one of them made the next one goes first. `sft`, `dpo` and `grpo`
    are the recipes that the stages start from, `ranges` how far the tuner may leave them; `eta` and `rungs` make the
    ladder (the last rung is a recipe's full steps); `children` is how many of the eta - 1 places that a climbing
    configuration leaves behind go to children of it; `sampler` draws new recipes; `segment_steps` is the length of a
    reinforcement segment; dpo answers `pair_prompts` fresh search items `pair_samples` times each to make pairs (0:
    only the operator's preferences are learned from); `fresh_items` search items a task decide a comparison at the
    one-sided `level`;
    `save_steps` is how often a training job saves itself.
    """

    stages: tuple[Stage, ...] = (Stage.SFT, Stage.GRPO)
    sft: Recipe = SFT
    dpo: Recipe = DPO
    grpo: Recipe = GRPO
    ranges: Ranges = RANGES
    eta: int = 3
    rungs: int = 3
    children: int = 0
    sampler: Sampler = Sampler.TPE
    segment_steps: int = 24
    pair_prompts: int = 128
    pair_samples: int = 8
    fresh_items: int = 512
    level: float = 0.05
    save_steps: int = 50

    def __post_init__(self) -> None:
        for stage, recipe in self.defaults.items():
            if recipe.stage is not stage:
                raise ValueError(f'the recipe {stage} has stage = "{stage}"')
        if not self.stages or self.segment_steps < 1 or self.fresh_items < 1:
            raise ValueError("stages, segment_steps and fresh_items must not be empty or 0")
        if len(set(self.stages)) < len(self.stages):
            raise ValueError("stages must name each stage once: after the last comes the first again")
        if self.pair_prompts < 0 or self.pair_samples < 2:
            raise ValueError("pair_prompts must be at least 0 and pair_samples at least 2")
        if not 0 < self.level < 1:
            raise ValueError("level must be between 0 and 1")
        Ladder(self.eta, self.rungs)
        if not 0 <= self.children < self.eta:
            raise ValueError(f"children must be between 0 and {self.eta - 1}, one less than eta")
        self.space.check()

    @property
    def ladder(self) -> Ladder:
        return Ladder(self.eta, self.rungs)

    @property
    def defaults(self) -> dict[Stage, Recipe]:
        return {Stage.SFT: self.sft, Stage.DPO: self.dpo, Stage.GRPO: self.grpo}

    @property
    def space(self) -> Space:
        return Space(self.stages, self.defaults, self.ranges)
