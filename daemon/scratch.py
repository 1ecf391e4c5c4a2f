"""A job's scratch folder: named by the job's digest, private, and kept exactly as long as the job may be run again.

Invariant: whatever a job left in it, however deep, locked or named, it can be opened again or removed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

DIGEST_LENGTH: Final = 64
SEEN: Final = ".seen"
"""Beside what a job saves: the last step that `went_on` has told of."""
KEPT_DAYS: Final = 7.0
"""How long the folder of a job that nobody came back for is kept."""


def open_again(scratch: Path) -> None:
    """Make the folder if it is not there. What a kill during adoption left read-only in it can be written again.

    What cannot be opened is thrown away, and the job begins anew.
    """
    try:
        scratch.mkdir(mode=0o700, exist_ok=True)
        for file in scratch.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(file.stat().st_mode | 0o200)
    except (OSError, RecursionError):
        discard(scratch)
        scratch.mkdir(mode=0o700, exist_ok=True)


def newest_save(scratch: Path) -> str:
    """The name of the last step that the job saved, "" where there is none. Names rise with the steps."""
    return max((save.name for save in scratch.glob("steps/*") if not save.suffix), default="")


def went_on(scratch: Path) -> bool:
    """Whether the job saved a step since this was last asked, by an earlier life also."""
    newest, mark = newest_save(scratch), scratch / SEEN
    if newest <= (mark.read_text() if mark.exists() else ""):
        return False
    mark.unlink(missing_ok=True)                    # whatever a job may have put in its place
    mark.write_text(newest)
    return True


def discard(scratch: Path) -> None:
    """Remove the folder. What cannot be removed now is tried again by `sweep`.

    Folders inside are emptied one level at a time, so that neither depth nor a long path stops it.
    """
    with suppress(OSError):
        number = 0
        while folders := _emptied(scratch):
            for folder in folders:
                for inner in _emptied(folder):
                    number += 1
                    inner.rename(scratch / f"{os.getpid()}.{time.monotonic_ns()}.{number}")
                folder.rmdir()
        scratch.rmdir()


def _emptied(folder: Path) -> list[Path]:
    """The folders inside a folder whose other contents are removed."""
    folder.chmod(0o700)
    with os.scandir(folder) as entries:
        found = [(Path(entry.path), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for path, is_folder in found:
        if not is_folder:
            path.unlink()
    return [path for path, is_folder in found if is_folder]


def sweep(folder: Path, finished: Callable[[str], bool]) -> None:
    """Remove the scratch below `folder` of jobs that are finished by their digest, or that are older than KEPT_DAYS."""
    oldest = time.time() - KEPT_DAYS * 86400
    for scratch in folder.iterdir():
        is_scratch = len(scratch.name) == DIGEST_LENGTH and scratch.is_dir()
        if is_scratch and (scratch.stat().st_mtime < oldest or finished(scratch.name)):
            discard(scratch)
