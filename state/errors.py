"""What goes wrong in the state folder, said in one line. Standard library only."""

from __future__ import annotations

import errno
from pathlib import Path

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
OF_THE_DISK = NO_SPACE | {errno.EIO, errno.EROFS}
OF_THE_HOST = OF_THE_DISK | {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
LONGEST_LINE = 2_000


def one_line(text: str) -> str:
    """Text as one line that a terminal only shows: no line ends, no control characters, and not without end."""
    shown = "".join(
        char if char.isprintable() else " " if char.isspace() else char.encode("unicode_escape").decode()
        for char in text[: 2 * LONGEST_LINE]
    )
    return shown if len(text) <= LONGEST_LINE else f"{shown[:LONGEST_LINE]} ..."


class UserError(Exception):
    """Bad input, or a host that cannot serve. The text is one clear line that says what to do; nothing was changed."""

    exit_code = 2

    def __init__(self, text: object = "") -> None:
        super().__init__(one_line(str(text)))


class ConfigurationError(UserError):
    """The service's configuration or bounds need a person: starting again would not help (EX_CONFIG of sysexits)."""

    exit_code = 78


class StateError(UserError):
    """The state folder cannot be used as it is. The text is one clear line for the operator."""


class HostError(StateError):
    """The host failed: no space, a failing disk, nothing left to open. Nobody's fault, and a later start continues."""


def in_one_line(what: str, path: Path, error: OSError) -> StateError:
    """A StateError that says what could not be done, where, and why."""
    if error.errno in NO_SPACE:
        return HostError(f"no space left to {what} {path}: free some space on its disk and start again")
    kind = HostError if error.errno in OF_THE_HOST else StateError
    return kind(f"cannot {what} {path}: {error.strerror or error}")
