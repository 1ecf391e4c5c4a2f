"""What goes wrong in the state folder, said in one line. Standard library only."""

from __future__ import annotations

import errno
from pathlib import Path

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class UserError(Exception):
    """Bad input, or a host that cannot serve. The text is one clear line that says what to do; nothing was changed."""

    exit_code = 2


class ConfigurationError(UserError):
    """The service's configuration or bounds need a person: starting again would not help (EX_CONFIG of sysexits)."""

    exit_code = 78


class StateError(UserError):
    """The state folder cannot be used as it is. The text is one clear line for the operator."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.splitlines()))


def in_one_line(what: str, path: Path, error: OSError) -> StateError:
    """A StateError that says what could not be done, where, and why."""
    if error.errno in NO_SPACE:
        return StateError(f"no space left to {what} {path}: free some space on its disk and start again")
    return StateError(f"cannot {what} {path}: {error.strerror or error}")
