"""Valid operator files, spoiled in every way that can be thought of: trees of TOML, their text, their bytes.

Everything is drawn through hypothesis, so that a failure shrinks to the mutation that matters.
"""

from __future__ import annotations

import copy
import json
import signal
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import strategies as st

Key = tuple[str | int, ...]
NAMES = (
    "seed", "sede", "", "a b", "a\nb", "\x1b[31mred", "ключ", "\u202egnp", "_env_file", "_cli_parse_args",
    "_secrets_dir", "__pydantic_self__", "self", "model_config", "__class__", "x" * 300, "'", '"', "\\", "\0",
    "...", "pooled", "race",
)
TEXTS = (
    "", " ", "\0", "a\nb", "\x1b]0;title\x07", "../../etc/passwd", "/dev/zero", "/dev/null/x", "/proc/self/mem",
    "x" * 300, "y" * 5000, "loop", "pipe", "models", "~", "🐌" * 80, "nan", "true", "cmaes", "grpo", "jsonl",
    "bilingual", "\ufeff", "cuda", "float32", "ties",
)
NUMBERS = (
    0, -1, 1, 2, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400, 0.0, -0.0, 0.5, 1e-320, 1e-300, 1e308, -1e308,
    float("nan"), float("inf"), float("-inf"), 1e-12,
)
MOMENTS = (datetime(2026, 1, 1, 8), date(2026, 1, 1), time(8))

scalars = (
    st.sampled_from(NUMBERS) | st.sampled_from(TEXTS) | st.sampled_from(MOMENTS) | st.booleans() | st.integers()
    | st.floats() | st.text(st.characters(codec="utf-8"), max_size=30)
)
keys = st.sampled_from(NAMES) | st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)


@dataclass(frozen=True, repr=False)
class Spoiled:
    """The bytes of a file, what was done to it, and, where one key was changed, the words a complaint must hold."""

    content: bytes
    how: str
    keys: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Spoiled({self.content[:3000]!r}, {self.how!r}, {self.keys!r})"


def toml_text(tree: dict[str, Any]) -> str:
    """A tree as TOML, every table in line."""
    return "".join(f"{toml_value(str(key))} = {toml_value(value)}\n" for key, value in tree.items())


def toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=value.isascii()).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_value(str(key))} = {toml_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    return repr(value)


def places_in(tree: Any, at: Key = ()) -> Iterator[Key]:
    """Where a tree can be changed: every table, list and leaf below its root."""
    for key, inner in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*at, key)
        yield from places_in(inner, (*at, key))


def within(tree: Any, at: Key) -> Any:
    for key in at:
        tree = tree[key]
    return tree


@st.composite
def spoiled_trees(draw: st.DrawFn, text: str) -> Spoiled:
    """The file with one place of its tree changed: another value, no value, a key too many or one by another name."""
    tree = copy.deepcopy(tomllib.loads(text))
    at = draw(st.sampled_from(list(places_in(tree))))
    outer, last = within(tree, at[:-1]), at[-1]
    how = draw(st.sampled_from(["set", "set", "set", "remove", "add", "rename", "swap"]))
    named = tuple(str(key) for key in at)
    if how == "set":
        outer[last] = draw(values)
    elif how == "remove":
        del outer[last]
    elif how == "add" and isinstance(outer, dict):
        name = draw(keys)
        outer[name] = draw(values)
        named = (*named[:-1], name)
    elif how == "rename" and isinstance(outer, dict):
        name = draw(keys)
        outer[name] = outer.pop(last)
        named = (*named, name)
    elif isinstance(outer[last], (dict, list)):
        outer[last] = draw(scalars)
    else:
        outer[last] = draw(st.sampled_from([{}, [], {"x": outer[last]}, [outer[last]], [[outer[last]]]]))
    return Spoiled(toml_text(tree).encode("utf-8", errors="surrogatepass"), f"{how} {at}", named)


def nested(depth: int) -> bytes:
    return b"x = " + b"[" * depth + b"]" * depth + b"\n"


WHOLES = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbfseed = 1\n", b"\x89PNG\r\n\x1a\n", b"{}", b"[]", b"null", b"seed", b"seed =",
    b"[[models]]\n", b"[models]\n[models]\n", b"seed = 1\nseed = 2\n", b"[a.b]\n[a]\nb = 1\n", b"seed = 0777\n",
    b"seed = " + b"9" * 5000, b"seed = 1" + b"0" * 4000, b"seed = 0x" + b"f" * 4000, b"seed = 1e99999\n",
    b"seed = 2026-13-45\n", b"seed = 99:99:99\n", nested(40), nested(90), nested(2000), nested(60_000),
    b"a." * 200 + b"a = 1\n", b"a." * 30_000 + b"a = 1\n", b"x = " + b"{a=" * 500 + b"1" + b"}" * 500 + b"\n",
    b'x = """' + b"a\n" * 1000 + b'"""\n', b"# " + b"c" * 200_000, b"\n" * 200_000,
    b'x = "\\ud800"\n', b'x = "\\u0000"\n',
    b"seed = 1\r\n\r\n", b"seed = 1\r", b"\x1b[2J = 1\n", b"seed = 1 # \x00\n", b"x" * 3_000_000,
)


@st.composite
def spoiled_texts(draw: st.DrawFn, text: str) -> Spoiled:
    """The file's text or bytes changed, whatever they mean; or another file altogether."""
    body = text.encode()
    how = draw(st.sampled_from(["whole", "flip", "cut", "insert", "twice", "drop", "append", "encode"]))
    place = draw(st.integers(0, len(body) - 1))
    lines = body.splitlines(keepends=True)
    if how == "whole":
        body = draw(st.sampled_from(WHOLES))
    elif how == "flip":
        body = body[:place] + bytes([draw(st.integers(0, 255))]) + body[place + 1 :]
    elif how == "cut":
        body = body[:place]
    elif how == "insert":
        body = body[:place] + draw(st.binary(min_size=1, max_size=6)) + body[place:]
    elif how == "twice":
        number = draw(st.integers(0, len(lines) - 1))
        place = number if draw(st.booleans()) else len(lines)
        body = b"".join([*lines[:place], lines[number], *lines[place:]])
    elif how == "drop":
        number = draw(st.integers(0, len(lines) - 1))
        body = b"".join(lines[:number] + lines[number + 1 :])
    elif how == "append":
        body += draw(st.sampled_from(WHOLES))
    else:
        body = text.encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig"])))
    return Spoiled(body, how)


def spoiled_files(text: str) -> st.SearchStrategy[Spoiled]:
    return st.one_of(spoiled_trees(text), spoiled_trees(text), spoiled_texts(text))


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Fails where the block is not done in time, also one that waits for a pipe."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not done within {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def snapshot(folder: Path) -> dict[str, tuple[int, ...]]:
    """What would show any effect on a folder, without reading it: every entry with inode, mode, size and times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


def assert_one_line(text: str) -> None:
    assert text == text.strip() != "", text
    assert text.isprintable(), ascii(text)
    assert len(text) < 7000, len(text)
    text.encode()                                        # half a character could not even be shown
