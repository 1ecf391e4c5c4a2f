"""What a learned shaping is worth: the reward loop on a task that is rarely solved, beside loops that shape otherwise.

Every arm begins with the same model and may sample the same number of completions, those of controls among them; its
segments are the product's own jobs, accepted or dropped by the product's own rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from loops.loop import Bench, Trial
from loops.pipeline.recipe import Recipe, Stage
from loops.reward.loop import RewardLoop, RewardSettings, _arm
from loops.reward.shaping import Shaping, annealed
from safety.yardstick.items import TaskSpec
from safety.yardstick.scoring import load_model, score_items
from state.records import Budget, Candidate, Cycle, JsonObject, Verdict, seed_from
from studies.sorting import Sorting
from studies.world import Workshop, _no_descent

SEGMENT_STEPS: Final = 24
RECIPE: Final = Recipe(Stage.GRPO, learning_rate=5e-4, batch=16, steps=384, group=8)
PLENTY: Final = Budget(1e9, 10**12, 10**6)


class Given(RewardLoop):
    """A reward loop whose shaping somebody has chosen beforehand; it runs without a control."""

    weights: Mapping[str, float] = {}

    def shaping(self, state: JsonObject, step: int, horizon: int) -> Shaping:
        return Shaping(self.weights, annealed(self.settings.strength, step, horizon))

    def run(self, candidate: Candidate, bench: Bench) -> Trial:
        shaping = Shaping.from_json(candidate.change["shaping"])
        spec = self._spec(candidate.change, shaping, bench.left.tokens, bench)
        arm = _arm(bench.jobs([spec])[0])
        return Trial(arm["model"], {"arms": {"zero": arm}, "best_q": None, "history": []})
