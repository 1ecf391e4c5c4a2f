"""Where things live: which kaizend.toml is meant, and the paths it names. Standard library only, for quick commands.

Paths in kaizend.toml are relative to the folder it lies in, so that a folder can be moved as a whole.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from state import given
from state.errors import UserError

CONFIG_NAME = "kaizend.toml"
BOUNDS_NAME = "bounds.toml"


@dataclass(frozen=True, slots=True)
class Places:
    """The operator's files and the state folder."""

    config: Path
    bounds: Path
    state: Path

    @property
    def database(self) -> Path:
        return self.state / "kaizend.db"

    @property
    def socket(self) -> Path:
        return self.state / "kaizend.sock"


def find_config(option: Path | None) -> Path:
    """`--config`, else KAIZEND_CONFIG, else kaizend.toml in the current folder. Raises UserError."""
    named = option or (Path(os.environ["KAIZEND_CONFIG"]) if os.environ.get("KAIZEND_CONFIG") else None)
    path = named or Path(CONFIG_NAME)
    if given.is_folder(path):
        path = path / CONFIG_NAME
    if not given.is_file(path):
        where = f"{path} does not exist" if named else f"no {CONFIG_NAME} in this folder"
        raise UserError(f"{where}: make one with `kaizend init`, or name one with --config or KAIZEND_CONFIG")
    return path.resolve()


def read_toml(path: Path) -> dict[str, Any]:
    """The file as a tree. Raises UserError naming the file and the place of the error."""
    try:
        return given.read_toml(path)
    except given.NotValid as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    except given.Unreadable as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def read_places(config: Path) -> Places:
    """The paths that `config` names. Raises UserError."""
    service = read_toml(config).get("service", {})
    if not isinstance(service, dict):
        raise UserError(f"{config}: [service] must be a table")
    paths = {}
    for key, default in (("bounds", BOUNDS_NAME), ("state", "var")):
        value = service.get(key, default)
        if not isinstance(value, str) or not value or "\0" in value:
            raise UserError(f"{config}: service.{key} must be a path")
        paths[key] = config.parent / value
    return Places(config, paths["bounds"], paths["state"])
