"""Reading what somebody else wrote: files of any kind, size and content, at any path.

Standard library only. Invariants: nothing here waits (a pipe is not read), reads without end (a device is not read, a
size is bounded) or raises anything but Unreadable, whose text is one line without the name of the file.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

MOST_TOML: Final = 128 * 2**10
UNSAYABLE: Final = 10**sys.int_info.default_max_str_digits
MOST_DOTS: Final = 500
"""In one line, outside a comment."""
MOST_TEXT: Final = 512 * 2**20
DEEPEST: Final = 64
PIECE: Final = 2**20


class Unreadable(Exception):
    """A given file cannot be used; the text says why."""


class NotValid(Unreadable):
    """It can be read, but is not what its name says."""


def is_file(path: Path) -> bool:
    """Whether a regular file is there; no for what cannot be looked at."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    return stat.S_ISDIR(_mode(path))


def read_bytes(path: Path, most: int = MOST_TEXT) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises Unreadable."""
    try:
        kind = path.stat().st_mode                       # before it is opened: opening a device may do something
        if not stat.S_ISREG(kind):
            raise Unreadable("a folder" if stat.S_ISDIR(kind) else "not a regular file")
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("not a regular file")
            content = _read(stream, most + 1) if status.st_size <= most else b""
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    except ValueError as error:
        raise Unreadable("no file can have such a name") from error
    if max(len(content), status.st_size) > most:
        raise Unreadable(f"larger than {most >> 10} KiB")
    return content


def _read(stream: IO[bytes], most: int) -> bytes:
    """Up to so many bytes, piece by piece: asked for at once, room for all of them would be made at once."""
    pieces, left = [], most
    while left and (piece := stream.read(min(left, PIECE))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """The text of a UTF-8 file. Raises Unreadable."""
    content = read_bytes(path, most)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise NotValid(f"not UTF-8 at byte {error.start}, in line {line}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a tree. Raises Unreadable."""
    text = read_text(path, MOST_TOML)
    if any(line.partition("#")[0].count(".") > MOST_DOTS for line in text.splitlines()):
        raise NotValid("nested too deep")                # the parser's time rises with the square of a dotted key
    try:
        tree = tomllib.loads(text)
    except RecursionError as error:
        raise NotValid("nested too deep") from error
    except ValueError as error:                          # also a number of thousands of digits
        raise NotValid(str(error)) from error
    if _deeper_than(tree, DEEPEST):
        raise NotValid("nested too deep")
    if _has_unsayable(tree):                             # in hexadecimal the parser takes it
        raise NotValid("a number of thousands of digits")
    return tree


def parse_json(text: str | bytes) -> Any:
    """A JSON value in which no object names a key twice: readers differ in which one they take. Raises NotValid."""
    try:
        body = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise NotValid("nested too deep") from error
    except ValueError as error:
        raise NotValid(str(error)) from error
    if _deeper_than(body, DEEPEST):
        raise NotValid("nested too deep")
    return body


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        names = Counter(key for key, _ in pairs)
        raise ValueError(f"key {names.most_common(1)[0][0]!r} is there twice")
    return body


def _deeper_than(value: Any, most: int) -> bool:
    """Whether tables and lists are nested deeper than that, found without recursion."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner for outer in level for inner in (outer.values() if isinstance(outer, Mapping) else outer)
            if isinstance(inner, (dict, list))
        ] if level and isinstance(level[0], (dict, list)) else []
        if not level:
            return False
    return True


def _has_unsayable(value: Any) -> bool:
    """Whether a whole number is longer than Python turns into text, as an error about it would."""
    if isinstance(value, (dict, list)):
        return any(map(_has_unsayable, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) >= UNSAYABLE


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0
