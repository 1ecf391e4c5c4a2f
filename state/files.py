"""Files of an artefact: their manifest, a copy, making them durable and read-only, taking them away.

Standard library only; knows nothing of tables. Errors come as OSError, except for what an artefact may not contain.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from state.errors import StateError

NOT_COPIED = {".git", ".cache"}        # what download tools leave in a model folder
READ_ONLY, SEALED = (0o444, 0o755), (0o400, 0o700)


def manifest_of(path: Path) -> dict[str, str]:
    """{relative name: SHA-256} of every file of a folder, or of the one file `path`.

    Raises StateError for what has no content of its own to hash: links, devices, an empty folder.
    """
    if not path.exists():
        raise StateError(f"there is nothing at {path}")
    files = {_name(file, path): _hash(file) for file in files_of(path)}
    if not files:
        raise StateError(f"{path} is empty: there is nothing to keep")
    return files


def files_of(path: Path) -> Iterator[Path]:
    """Every file below a folder, in the order of their names; the path itself when it is a file."""
    if path.is_symlink() or not (path.is_dir() or path.is_file()):
        raise StateError(f"{path} is neither a file nor a folder: it cannot be kept")
    if path.is_file():
        yield path
        return
    for inner in sorted(path.iterdir()):
        yield from files_of(inner)


def size_of(path: Path) -> int:
    """Bytes of all files together."""
    return sum(file.stat().st_size for file in files_of(path))


def make_durable(path: Path, modes: tuple[int, int]) -> None:
    """Set the modes of files and folders and write everything through to the disk, folders last."""
    file_mode, folder_mode = modes
    if path.is_dir():
        path.chmod(folder_mode)
        for inner in path.iterdir():
            make_durable(inner, modes)
    else:
        path.chmod(file_mode)
    sync(path)


def sync(path: Path) -> None:
    """Write a file, or the names in a folder, through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy(source: Path, target: Path) -> None:
    """Copy a file or folder, up to the first error; links are followed, so that the copy stands by itself."""
    if not source.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return
    target.mkdir(parents=True)
    for inner in sorted(source.iterdir()):
        if inner.name not in NOT_COPIED:
            copy(inner, target / inner.name)


def discard(path: Path) -> None:
    """Take a file, a link or a whole folder away, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _name(file: Path, path: Path) -> str:
    name = file.name if file == path else file.relative_to(path).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise StateError(f"{path} holds a file whose name is not UTF-8: {name!a}") from None
    return name
