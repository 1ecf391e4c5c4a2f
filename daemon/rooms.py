"""A worker's room: the only place of the state folder that a worker sees, and how jobs come in and go out of it.

    jobs/<digest>/              scratch of a job that no worker has in hand
    jobs/room-<name>/in/        what the job in hand was given: second names of the artefacts' files, read-only
    jobs/room-<name>/out/       its scratch, for as long as it is in hand
    jobs/room-<name>/tmp/       temporary files

A sandbox is never widened, so a warm worker cannot be given another folder: jobs are moved into the room of their
worker and out again. Invariant: once a job has left the room, its worker cannot open its files any more; so what is
taken over is looked at afterwards, never before.
"""

from __future__ import annotations

import os
import pwd
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from daemon.scratch import discard

PREFIX: Final = "room-"
IN, OUT, TMP = "in", "out", "tmp"


class Room:
    """The room of one worker. Made, its three folders are there; `user` owns what it may write."""

    def __init__(self, jobs: Path, user: str = "") -> None:
        self.folder = jobs / f"{PREFIX}{uuid.uuid4().hex[:12]}"
        self.inside, self.outside, self.temporary = (self.folder / name for name in (IN, OUT, TMP))
        self.owner = _ids_of(user) if user and os.geteuid() == 0 else None
        self.folder.mkdir(mode=0o711)
        for place in (self.inside, self.outside, self.temporary):
            place.mkdir(mode=0o700)
            self._give(place)
        if self.owner:
            for above in (self.folder, jobs, jobs.parent):          # to be walked through, not to be read
                above.chmod(above.stat().st_mode | 0o011)

    @property
    def writable(self) -> tuple[str, str]:
        return str(self.outside), str(self.temporary)

    def move_in(self, scratch: Path, inputs: Mapping[str, Path]) -> tuple[Path, dict[str, str]]:
        """Where the worker finds the scratch folder and the inputs by name."""
        given = {}
        for name, path in inputs.items():
            place = self.inside / path.parent.name / path.name
            if not place.exists():
                place.parent.mkdir(exist_ok=True)
                self._second_name(path, place)
            given[name] = str(place)
        if self.owner:
            for part in _all_of(self.inside):
                self._give(part)
        here = self.outside / scratch.name
        scratch.rename(here)
        self._give_all(here, self.owner)
        return here, given

    def move_out(self, scratch: Path) -> None:
        """Take the scratch folder out of the worker's reach and forget what else the job left."""
        here = self.outside / scratch.name
        if here.is_dir():
            here.rename(scratch)
            self._give_all(scratch, (os.geteuid(), os.getegid()))
        for place in (self.inside, self.outside, self.temporary):
            with suppress(FileNotFoundError):
                for left in place.iterdir():
                    discard(left) if left.is_dir() and not left.is_symlink() else left.unlink()

    def remove(self) -> None:
        discard(self.folder)

    def _second_name(self, path: Path, place: Path) -> None:
        """The same file under another name; a copy where the file system has no such thing, or the owner differs."""
        for source in _all_of(path):
            target = place / source.relative_to(path) if source != path else place
            if source.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            elif self.owner and not source.stat().st_mode & 0o004:
                shutil.copyfile(source, target)
            else:
                try:
                    target.hardlink_to(source)
                except OSError:
                    shutil.copyfile(source, target)

    def _give(self, place: Path) -> None:
        if self.owner and (place.is_dir() or place.stat().st_nlink == 1):       # never what an artefact shares
            os.chown(place, *self.owner, follow_symlinks=False)

    def _give_all(self, folder: Path, owner: tuple[int, int] | None) -> None:
        if self.owner and owner:
            for part in _all_of(folder):
                os.chown(part, *owner, follow_symlinks=False)


def reclaim(jobs: Path) -> None:
    """After a daemon that was killed: take the scratch out of the rooms it left, and remove them."""
    for room in jobs.glob(f"{PREFIX}*"):
        outside = room / OUT
        for scratch in outside.iterdir() if outside.is_dir() else ():
            if not (jobs / scratch.name).exists():
                scratch.rename(jobs / scratch.name)
        discard(room)


def _ids_of(user: str) -> tuple[int, int] | None:
    """None for a user that does not exist: its worker will say so."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def _all_of(path: Path) -> Iterator[Path]:
    """A path and everything below it, folders first; links are not followed."""
    yield path
    if path.is_dir() and not path.is_symlink():
        for inner in sorted(path.iterdir()):
            yield from _all_of(inner)
