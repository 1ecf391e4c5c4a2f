"""A recipe: what a pipeline candidate varies, as a value with one JSON form.

Nothing here chooses a recipe (`space`, `tuner`) or carries one out (`loops.work`). Standard library only: job
functions may import it too. Invariant: a `Recipe` that exists is well formed; `from_json` says which field is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Final

from state.records import JsonObject

OWN: Final = "own"
"""The source that is no operator's: the pairs of answers that a model makes itself."""


class Stage(StrEnum):
    SFT = "sft"
    DPO = "dpo"
    GRPO = "grpo"


class Schedule(StrEnum):
    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class AdapterKind(StrEnum):
    NONE = "none"
    LORA = "lora"
    DORA = "dora"
    RSLORA = "rslora"


class Loss(StrEnum):
    """What dpo minimises: -ln sigmoid(beta d) (2305.18290), max(0, 1 - beta d) (2309.06657) or (d - 1 / 2 beta)^2
    (2310.12036), where d is by how much more the log-probability of the chosen answer has risen above the reference
    than that of the rejected one, for ipo a token.
    """

    SIGMOID = "sigmoid"
    HINGE = "hinge"
    IPO = "ipo"


@dataclass(frozen=True, slots=True)
class Adapter:
    """Which weights are trained: all of them, or a low-rank adapter of `rank` scaled by `alpha`."""

    kind: AdapterKind = AdapterKind.NONE
    rank: int = 16
    alpha: float = 32.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one stage of training is done.

    `batch` is rows a step for sft, pairs a step for dpo and prompts a step for grpo (each answered `group` times);
    `steps` is the full budget, of which a rung is a part; `warmup` is a fraction of it. `mixture` gives each data
    source its share (they need not sum to 1; none: all sources alike). `replay` weighs the cross-entropy on those
    sources during grpo, `success_replay` that on the model's own right answers; `temperature` and `group` are grpo's
    too. `beta` holds the model near the reference: the weight of grpo's KL term, or the scale of dpo's `loss`.
    """

    stage: Stage
    learning_rate: float
    batch: int
    steps: int
    warmup: float = 0.05
    schedule: Schedule = Schedule.CONSTANT
    adapter: Adapter = Adapter()
    mixture: Mapping[str, float] = field(default_factory=dict)
    replay: float = 0.0
    temperature: float = 1.0
    group: int = 8
    beta: float = 0.0
    success_replay: float = 0.3
    loss: Loss = Loss.SIGMOID

    def __post_init__(self) -> None:
        for name, good, rule in (
            ("learning_rate", 0 < self.learning_rate < 1, "between 0 and 1"),
            ("batch", self.batch >= 1, "at least 1"),
            ("steps", self.steps >= 1, "at least 1"),
            ("warmup", 0 <= self.warmup <= 1, "between 0 and 1"),
            ("adapter.rank", self.adapter.rank >= 1, "at least 1"),
            ("adapter.alpha", 0 < self.adapter.alpha < math.inf, "above 0 and finite"),
            ("mixture", all(0 <= share < math.inf for share in self.mixture.values()), "of finite shares from 0 on"),
            ("replay", 0 <= self.replay < math.inf, "at least 0 and finite"),
            ("success_replay", 0 <= self.success_replay < math.inf, "at least 0 and finite"),
            ("temperature", 0 < self.temperature < math.inf, "above 0 and finite"),
            ("group", self.group >= 2, "at least 2"),
            ("beta", 0 <= self.beta < math.inf, "at least 0 and finite"),
            ("beta", self.beta > 0 or self.stage is not Stage.DPO, "above 0 for dpo"),
        ):
            if not good:
                raise ValueError(f"recipe: {name} must be {rule}")

    @property
    def completions(self) -> int:
        """Sequences a step: rows for sft, two a pair for dpo, prompts x group for grpo."""
        return self.batch * {Stage.SFT: 1, Stage.DPO: 2, Stage.GRPO: self.group}[self.stage]

    def shares(self, sources: Mapping[str, object]) -> dict[str, float]:
        """The mixture over the sources that exist, summing to 1; all alike where it names none of them."""
        known = {name: self.mixture.get(name, 0.0) for name in sorted(sources)}
        total = sum(known.values())
        if total <= 0:
            return {name: 1.0 / len(known) for name in known}
        return {name: share / total for name, share in known.items() if share > 0}

    def with_mixture(self, mixture: Mapping[str, float]) -> Recipe:
        return replace(self, mixture=dict(mixture))

    def rate(self, step: int) -> float:
        """The learning rate of one global step (0-based) of the full budget, whichever rung runs it."""
        rise = round(self.warmup * self.steps)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, self.steps - rise))
        if self.schedule is Schedule.LINEAR:
            return self.learning_rate * (1.0 - done)
        if self.schedule is Schedule.COSINE:
            return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
        return self.learning_rate

    def to_json(self) -> JsonObject:
        body = asdict(self)
        body |= {"stage": str(self.stage), "schedule": str(self.schedule), "loss": str(self.loss)}
        if self.stage is not Stage.DPO:
            del body["loss"]                    # no other stage has one: a recipe from before there was reads the same
        body["adapter"]["kind"] = str(self.adapter.kind)
        body["mixture"] = dict(self.mixture)
        return body

    @classmethod
    def from_json(cls, body: JsonObject) -> Recipe:
        """ValueError names the field that is missing, unknown or out of range."""
        try:
            adapter = body.get("adapter", {})
            return cls(**{
                **body,
                "stage": Stage(body["stage"]),
                "schedule": Schedule(body.get("schedule", Schedule.CONSTANT)),
                "adapter": Adapter(**{**adapter, "kind": AdapterKind(adapter.get("kind", AdapterKind.NONE))}),
                "mixture": dict(body.get("mixture", {})),
                "loss": Loss(body.get("loss", Loss.SIGMOID)),
            })
        except (KeyError, TypeError) as error:
            raise ValueError(f"recipe: {error}") from error


SFT: Final = Recipe(
    Stage.SFT, learning_rate=2e-4, batch=16, steps=300, schedule=Schedule.COSINE, adapter=Adapter(AdapterKind.LORA),
)
DPO: Final = Recipe(
    Stage.DPO, learning_rate=5e-5, batch=16, steps=150, warmup=0.1, schedule=Schedule.COSINE,
    adapter=Adapter(AdapterKind.LORA), beta=0.1,
)
GRPO: Final = Recipe(
    Stage.GRPO, learning_rate=2e-5, batch=8, steps=108, adapter=Adapter(AdapterKind.LORA), replay=1.0,
)
DEFAULTS: Final[Mapping[Stage, Recipe]] = {Stage.SFT: SFT, Stage.DPO: DPO, Stage.GRPO: GRPO}
"""Where each stage starts. The operator's settings may name others."""
