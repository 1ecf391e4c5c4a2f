"""kaizend.toml as one frozen tree. Every key has a unit in its name and a default where one is sensible.

What may never be exceeded is not here but in bounds.toml (`safety.bounds`). Invariant: an unknown key, a wrong type or
a path outside what exists is an error of one line that names the file and the key.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from daemon.places import read_toml
from loops.architecture.settings import ArchitectureSettings
from loops.pipeline.recipe import OWN, Stage
from loops.pipeline.settings import PipelineSettings
from loops.reward.levels import unfit
from loops.reward.loop import RewardSettings
from safety.operators import MOST_PARENTS
from safety.yardstick.items import TaskError, TaskSpec
from state.errors import UserError
from state.records import Budget


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServiceSettings(Section):
    """How the daemon runs on this host."""

    state: str = "var"
    bounds: str = "bounds.toml"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = Field(1, ge=1, le=64)
    threads: int = Field(0, ge=0, le=4096, description="threads per worker; 0: all cores shared among the workers")
    signing_key: str = Field("", description="private key (PEM) that signs heads; empty: the state folder's own")
    heads_file: str = Field("", description="file that every signed head is appended to; empty: none")
    nursery: str = Field("", description="socket of a worker unit; empty: the daemon starts its own")
    log: Literal["auto", "json", "text"] = "auto"
    stop_seconds: float = Field(60.0, ge=0)
    idle_seconds: float = Field(1.0, gt=0)


class ModelSettings(Section):
    """The models to start from: folders in Hugging Face's layout with safetensors weights. A parent may be a LoRA
    adapter over the base, as PEFT saves it.
    """

    start: str
    base: str
    parents: tuple[str, ...] = Field(min_length=1, max_length=MOST_PARENTS)


class BudgetSettings(Section):
    """What one outermost cycle may spend, its children included."""

    seconds: float = Field(4 * 3600.0, gt=0)
    tokens: int = Field(100_000_000, gt=0)
    trials: int = Field(512, ge=0)

    def budget(self) -> Budget:
        return Budget(self.seconds, self.tokens, self.trials)


class Settings(BaseSettings):
    """Everything in kaizend.toml."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0, lt=2**63)
    service: ServiceSettings = ServiceSettings()
    models: ModelSettings
    data: dict[str, str] = {}
    tasks: tuple[dict[str, Any], ...] = Field(min_length=1)
    budget: BudgetSettings = BudgetSettings()
    architecture: ArchitectureSettings = ArchitectureSettings()
    pipeline: PipelineSettings = PipelineSettings()
    reward: RewardSettings = RewardSettings()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)          # the file is the only source: the environment only names the file

    def task_specs(self) -> tuple[TaskSpec, ...]:
        """Raises TaskError."""
        specs = tuple(TaskSpec.from_json(task) for task in self.tasks)
        for spec in specs:
            if spec.source["kind"] == "jsonl" and "path" not in spec.source:
                raise TaskError(f"task {spec.name}: source of kind jsonl needs 'path'")
        return specs

    @property
    def threads(self) -> int:
        return self.service.threads or max(1, (os.cpu_count() or 1) // self.service.workers)


def load_settings(path: Path) -> Settings:
    """Read and check kaizend.toml. Raises UserError with one line naming the file and the key."""
    tree = read_toml(path)
    _refuse_unusable_values(path, tree)
    try:
        settings = Settings(**tree)
    except ValidationError as error:
        raise UserError(f"{path}: {_first(error)}") from error
    try:
        specs = settings.task_specs()
    except (TaskError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: tasks: {error}") from error
    if misfit := settings.architecture.misfit(len(settings.models.parents)):
        raise UserError(f"{path}: architecture.operators: {misfit} as in models.parents")
    if wrong := unfit(settings.reward.levels, specs):
        raise UserError(f"{path}: reward.{wrong}")
    if OWN in settings.data and Stage.DPO in settings.pipeline.stages:
        raise UserError(f"{path}: data.{OWN}: this name is kept for the pairs that a model makes itself")
    if unknown := _mixture_of_nothing(settings):
        raise UserError(f"{path}: pipeline.{unknown}")
    names = [spec.name for spec in specs]
    if len(set(names)) != len(names):
        raise UserError(f"{path}: tasks: two tasks have the same name")
    if not any(spec.role == "target" for spec in specs):
        raise UserError(f'{path}: tasks: at least one task needs role = "target"')
    return settings


def _mixture_of_nothing(settings: Settings) -> str | None:
    """The first recipe whose shares go to a source that there is not, or to none."""
    for stage, recipe in settings.pipeline.defaults.items():
        known = {*settings.data, *([OWN] if stage is Stage.DPO else [])}
        if unknown := sorted(recipe.mixture.keys() - known):
            return f"{stage}.mixture: there is no data.{unknown[0]}, only {', '.join(sorted(known)) or 'none'}"
        if recipe.mixture and not any(recipe.mixture.values()):
            return f"{stage}.mixture: no source has a share above 0"
    return None


def _refuse_unusable_values(path: Path, tree: dict[str, Any]) -> None:
    """What pydantic would let through: keys that are its own arguments, and numbers that are none."""
    for key in tree:
        if key not in Settings.model_fields:
            raise UserError(f"{path}: {_dotted(key)}: unknown key")
    for key, value in _leaves(tree):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path}: {key}: {value} is not a number to work with")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"{path}: {key}: a number of so many digits is not one to work with")
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"{path}: {key}: a text with a null character")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no table and no list, with its dotted key."""
    if isinstance(value, (dict, list)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{key}.{_dotted(name)}" if key else _dotted(name))
    else:
        yield key, value


def _dotted(*parts: str | int) -> str:
    """A key as a complaint names it: one that a terminal would not show as it is comes in quotes."""
    texts = [str(part) for part in parts]
    return ".".join(text if text.isprintable() and text and " " not in text else repr(text) for text in texts)


def _first(error: ValidationError) -> str:
    """The first complaint in words: key, what is wrong, and how many more there are."""
    first, *others = error.errors()
    key = _dotted(*first["loc"])
    what = {
        "extra_forbidden": "unknown key",
        "unexpected_keyword_argument": "unknown key",
        "missing": "is missing",
    }.get(first["type"], first["msg"])
    more = f" ({len(others)} more)" if others else ""
    return f"{key}: {what}{more}"
