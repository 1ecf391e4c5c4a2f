"""What keeps reinforcement from forgetting: rows of the training data and the model's own successes, learned again.

    loss + success_replay CE(own successes) + replay CE(data)

with the recipe's weights, on 16 draws of the last own successes once there are 8, and on 48 rows of the sources in the
recipe's shares (ALGORITHMS 7). Which rows a step sees is a function of the seed and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from torch import Tensor

from loops.work.rows import Places, Tokens, answer_loss, pad_rows, to_device
from safety.yardstick.scoring import Encoded
from state.records import seed_from

DATA_ROWS: Final = 48
SUCCESS_ROWS: Final = 16
SUCCESSES_NEEDED: Final = 8


@dataclass(slots=True)
class Replay:
    """The extra loss of each step. `places` are the rows of the data for the steps from `first_step` on."""

    data: Tokens
    places: Places
    first_step: int
    weight: float
    success_weight: float
    seed: int
    device: str
    successes: Callable[[], Sequence[Encoded]]
    tokens: int = 0

    def loss(self, model: Any, step: int) -> Tensor | None:
        """The weighted cross-entropies of one step, or None where there is nothing to learn again."""
        terms = []
        chosen = self._chosen(step)
        if chosen:
            terms.append(self.weight * self._loss(model, [self.data.rows[place] for place in chosen]))
        held = self.successes() if self.success_weight > 0 else ()
        if len(held) >= SUCCESSES_NEEDED:
            generator = np.random.default_rng(seed_from(self.seed, "successes", step))
            drawn = generator.integers(len(held), size=SUCCESS_ROWS)
            terms.append(self.success_weight * self._loss(model, [held[place] for place in drawn]))
        return sum(terms[1:], terms[0]) if terms else None

    def most_tokens(self, step: int, longest: int) -> int:
        """The most that the loss of one step counts, where no answer of the step is longer, prompt included, than
        `longest`: it may be drawn as a success at once.
        """
        held = (len(prompt) + len(answer) for prompt, answer in self.successes())
        again = SUCCESS_ROWS * max([longest, *held]) if self.success_weight > 0 else 0
        return self.data.count(self._chosen(step)) + again

    def _chosen(self, step: int) -> list[int]:
        """The rows of the data that one step sees."""
        if self.weight <= 0 or not self.places.size:
            return []
        return [int(place) for place in self.places[step - self.first_step]]

    def _loss(self, model: Any, rows: Sequence[Encoded]) -> Tensor:
        self.tokens += sum(len(prompt) + len(answer) for prompt, answer in rows)
        return answer_loss(model, to_device(pad_rows(rows, self.data.pad), self.device))
