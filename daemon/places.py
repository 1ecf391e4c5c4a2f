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
    own_key: Path | None = None                 # service.signing_key, where it is named
    heads_file: Path | None = None              # service.heads_file, where it is named

    @property
    def database(self) -> Path:
        return self.state / "kaizend.db"

    @property
    def socket(self) -> Path:
        return self.state / "kaizend.sock"

    @property
    def signing_key(self) -> Path:
        """The private key that signs the ledger's heads."""
        return self.own_key or self.state / "signing.key"

    @property
    def public_key(self) -> Path:
        """Its public half: whose signatures this state folder's ledger bears. Removing it allows another key."""
        return self.state / "signing.pub"


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
    paths: dict[str, Path | None] = {}
    for key, default in (("bounds", BOUNDS_NAME), ("state", "var"), ("signing_key", None), ("heads_file", None)):
        value = service.get(key, default)
        if key in service and (not isinstance(value, str) or not value or "\0" in value):
            raise UserError(f"{config}: service.{key} must be a path")
        paths[key] = config.parent / value if value else None
    bounds, state = paths["bounds"], paths["state"]
    assert bounds is not None and state is not None
    return Places(config, bounds, state, paths["signing_key"], paths["heads_file"])
