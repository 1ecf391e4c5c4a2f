"""The operator's bounds: every limit there is, read from bounds.toml, and the two questions that are asked of them.

`admit` judges a change before it runs, `accept` a model after it was made. Standard library only, because the fast
commands read bounds too. Not here: how a key is read and compared (`safety.limits`), which part of a change falls
under which limit (`safety.admission`). Invariant: what no limit names is refused, never let through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from safety import admission
from safety.families import (
    BehaviourBounds,
    BreakerBounds,
    CodeBounds,
    DriftBounds,
    DriftFamily,
    GateBounds,
    GuardBounds,
    ModelBounds,
    PipelineBounds,
    RateBounds,
    ResourceBounds,
    RewardBounds,
    SandboxBounds,
    SearchBounds,
    ServingBounds,
    SupplyBounds,
)
from safety.levels import WARN_TOML, read_levels, warnings_of
from safety.limits import BoundsError, Refusal, limits_of, loosenings, read_section, table_of, toml_of
from state import given
from state.records import Candidate, JsonObject, digest_of

__all__ = [
    "DEFAULT_TOML", "Bounds", "BoundsError", "DriftBounds", "Refusal", "headroom", "load_bounds", "loosened", "table",
    "tightened",
]


@dataclass(frozen=True, slots=True)
class Bounds:
    """All limits, one section each."""

    model: ModelBounds = field(default_factory=ModelBounds)
    search: SearchBounds = field(default_factory=SearchBounds)
    pipeline: PipelineBounds = field(default_factory=PipelineBounds)
    reward: RewardBounds = field(default_factory=RewardBounds)
    drift: DriftFamily = field(default_factory=DriftFamily)
    guards: GuardBounds = field(default_factory=GuardBounds)
    behaviour: BehaviourBounds = field(default_factory=BehaviourBounds)
    rate: RateBounds = field(default_factory=RateBounds)
    resources: ResourceBounds = field(default_factory=ResourceBounds)
    sandbox: SandboxBounds = field(default_factory=SandboxBounds)
    serving: ServingBounds = field(default_factory=ServingBounds)
    supply: SupplyBounds = field(default_factory=SupplyBounds)
    gate: GateBounds = field(default_factory=GateBounds)
    code: CodeBounds = field(default_factory=CodeBounds)
    breaker: BreakerBounds = field(default_factory=BreakerBounds)
    warn: dict[str, float] = field(default_factory=dict)      # name of a bound -> its warning level; never a decision

    @property
    def job_seconds(self) -> float:
        return self.resources.job_seconds

    @property
    def digest(self) -> str:
        """Of the limits; warning levels decide nothing and are not in it."""
        return digest_of({name: value for name, value in self.to_json().items() if name != "warn"})

    def admit(self, candidate: Candidate, incumbent: JsonObject | None = None) -> Refusal | None:
        """The first bound that the candidate's change breaks, or None. A kind of change no bound knows is refused.

        `incumbent` is the merge out of which the incumbent came, where it is known.
        """
        return admission.admit(self, candidate, incumbent)

    def foresee(self, forecast: JsonObject) -> Refusal | None:
        """The first limit on models that breaks what is known of one before it is made (`safety.layers.forecast`)."""
        return admission.foresee(self, forecast)

    def warnings(self, readings: JsonObject) -> list[str]:
        """One line for each reading, by the name of its bound, that is past the bound's warning level."""
        return warnings_of(self.warn, readings, {name: (value, about) for name, value, about in limits_of(self)})

    def accept(self, facts: JsonObject, drift: JsonObject | None = None, limits: DriftBounds | None = None,
               name: str = "drift") -> Refusal | None:
        """The first bound that a measured model breaks, or None.

        `facts` and `drift` are the values "model" and "drift" of job "measure"; `limits` are the drift limits that
        apply (`drift.reference` or `drift.stable`) and `name` is what they are called in the refusal.
        """
        return admission.accept(self, facts) or (admission.within(limits, drift or {}, name) if limits else None)

    def drifted(self, drift: JsonObject, limits: DriftBounds, name: str) -> Refusal | None:
        """The first of the drift limits called `name` that a measured drift breaks, or None."""
        return admission.within(limits, drift, name)

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, body: JsonObject) -> Bounds:
        """Bounds as a ledger row keeps them; keys that came or went with a version are taken at their defaults."""
        known: Bounds = _tolerant(cls(), body)
        return known


def load_bounds(path: Path) -> Bounds:
    """The bounds in a bounds.toml. Raises BoundsError: one line with the file, the section and the key."""
    try:
        body = given.read_toml(path)
    except given.NotValid as error:
        raise BoundsError(f"{path}: not valid TOML: {error}") from error
    except given.Unreadable as error:
        raise BoundsError(f"{path}: cannot be read: {error}") from error
    levels = body.pop("warn", {})
    bounds: Bounds = read_section(Bounds(), body, str(path))
    bounds = replace(bounds, warn=read_levels(levels, bounds, str(path)))
    for low, high in (
        ("search.min_weight", "search.max_weight"), ("pipeline.min_learning_rate", "pipeline.max_learning_rate"),
    ):
        section, _, key = low.partition(".")
        family = getattr(bounds, section)
        if getattr(family, key) > getattr(family, high.partition(".")[2]):
            raise BoundsError(f"{path}: key {key!r} in section [{section}] is above {high.partition('.')[2]!r}")
    if not _is_name(bounds.breaker.stop_file):
        raise BoundsError(f"{path}: key 'stop_file' in section [breaker] must be the name of a file, without a folder")
    return bounds


def _is_name(text: str) -> bool:
    """Whether a file of this name can lie in a folder."""
    return bool(text) and text == Path(text).name != ".." and "\0" not in text and len(text.encode()) <= 255


def loosened(old: Bounds, new: Bounds) -> list[str]:
    """One line, "section.key: before -> after", for each limit of `new` that allows more than in `old`."""
    names = old.guards.margins.keys() | new.guards.margins.keys()
    return loosenings(_spelled_out(old, names), _spelled_out(new, names))


def tightened(old: Bounds, new: Bounds) -> list[str]:
    """The same for each limit that allows less than in `old`."""
    names = old.guards.margins.keys() | new.guards.margins.keys()
    return loosenings(_spelled_out(old, names), _spelled_out(new, names), back=True)


def table() -> str:
    """Every bound as a Markdown table: what docs/bounds.md holds."""
    return table_of(Bounds())


def headroom(bounds: Bounds) -> list[tuple[str, Any, str]]:
    """Every bound as (dotted name, current limit, what it does when it is met), in the order of the file."""
    return [(name, value, about.action) for name, value, about in limits_of(bounds)]


def _spelled_out(bounds: Bounds, names: set[str]) -> Bounds:
    """The same bounds with a margin of its own for each named task."""
    return replace(bounds, guards=replace(bounds.guards, margins={name: bounds.guards.of(name) for name in names}))


def _tolerant(section: Any, body: Mapping[str, Any]) -> Any:
    values = {}
    for item in fields(section):
        default = getattr(section, item.name)
        value = body.get(item.name, default)
        if is_dataclass(default):
            values[item.name] = _tolerant(default, value if isinstance(value, Mapping) else {})
        else:
            values[item.name] = tuple(value) if isinstance(default, tuple) else value
    return type(section)(**values)


DEFAULT_TOML = (
    "# What the daemon may never exceed. Tightening applies on reload; loosening needs `kaizend bounds loosen`.\n"
    "# Every key may be left out: then it has the value shown here.\n\n" + toml_of(Bounds())
    + WARN_TOML
)
"""The commented bounds.toml that `kaizend init` writes."""
