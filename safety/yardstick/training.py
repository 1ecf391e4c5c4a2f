"""The rows that models are trained on, read from the operator's files.

A row is a question with its answer, a conversation that ends with what the assistant says, or a text; or it is a
preference: a question or a conversation with an answer that was chosen and one that was rejected. What is trained on
and what sealing holds against the sealed items is read here and nowhere else. An artefact has lost the ending of its
name, so the format shows in the content: Parquet by its first bytes, JSON lines by a brace, CSV by a first line that
names fields which make a row; anything else is text, each line a row. Where the name still has its ending, the
content must be what it says: a table that is not understood is refused, never learned as text. Invariant: the rows of a
source are all preferences, or none is.

    python -m safety.yardstick.training FILE        what `contents` says, as JSON, for who must not import pyarrow
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from state import given

ENDINGS: Final = (".jsonl", ".json", ".csv", ".parquet", ".txt")
"""Of the files that count in a folder."""
PARQUET: Final = b"PAR1"
ROLES: Final = ("system", "user", "assistant", "tool")
ANSWERS: Final = ("answer", "completion")
PAIR: Final = ("chosen", "rejected")
FIELDS: Final = "prompt with answer or completion, or with chosen and rejected, or messages, or text"
_LINES: Final = "not JSON lines: an object a line is needed, and no list around them"
_MEANT: Final = {
    ".jsonl": _LINES, ".json": _LINES,
    ".csv": f"the first line must name fields, with commas between them: {FIELDS}",
}
"""What is wrong with a file of that ending whose content is something else."""

_HALF: Final = re.compile("[\ud800-\udfff]")

Turns = tuple[tuple[str, str], ...]
"""Of a conversation, before the answer: (role, content) each."""
Row = tuple[str | Turns, str]
"""(what is asked, answer). A text is the answer to nothing."""
Preference = tuple[str | Turns, str, str]
"""(what is asked, chosen answer, rejected answer)."""
Placed = tuple[str, Row | Preference]
"""(where it stands in words, row)."""


class RowError(ValueError):
    """A file of training data cannot be used: which, at which line or row, and what is wrong with which field."""


@dataclass(frozen=True, slots=True)
class Contents:
    """How many rows a file has, whether they are preferences, and whether one of them is a conversation."""

    rows: int
    preferences: bool
    conversations: bool


def contents(file: Path) -> Contents:
    """What a file holds, every row of it read. Raises RowError."""
    count, preferences, conversations = 0, False, False
    for row in rows_of(file):
        count, preferences = count + 1, len(row) == 3
        conversations = conversations or not isinstance(row[0], str)
    return Contents(count, preferences, conversations)


def rows_in(path: Path) -> Iterator[Row | Preference]:
    """The rows of a file, or of the files in a folder and below. Raises RowError."""
    yield from _alike(placed for file in files_in(path) for placed in _placed_rows(file))


def files_in(path: Path) -> list[Path]:
    """The file itself, or those of a folder that may have rows, in order. Raises RowError for a folder without any."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in ENDINGS and file.is_file())
    if not files:
        raise RowError(f"{path}: no file in this folder ends in {', '.join(ENDINGS)}")
    return files


def rows_of(file: Path) -> Iterator[Row | Preference]:
    """The rows of one file, in order. Raises RowError."""
    yield from _alike(_placed_rows(file))


def are_preferences(path: Path) -> bool:
    """Whether the rows of a file, or of a folder of files, are preferences; no where there are none. Raises RowError.
    """
    return next((len(row) == 3 for row in rows_in(path)), False)


def is_parquet(file: Path) -> bool:
    """Whether a file says that it is a Parquet table. Raises RowError where it cannot be read."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(PARQUET)) == PARQUET
    except OSError as error:
        raise RowError(f"{file.name}: cannot be read: {error.strerror}") from error


def answered(row: Row | Preference) -> list[Row]:
    """The row itself; of a preference a row for each of its answers."""
    asked, *answers = row
    return [(asked, answer) for answer in answers]


def texts_of(row: Row) -> list[str]:
    """Every text in a row, the answer last."""
    asked, answer = row
    return [asked, answer] if isinstance(asked, str) else [*(content for _, content in asked), answer]


def _alike(rows: Iterable[Placed]) -> Iterator[Row | Preference]:
    """The rows without their places. RowError where a preference stands among rows that are none, or one among them."""
    first = None
    for where, row in rows:
        first = first or row
        if len(row) != len(first):
            what = "a preference among rows that are none" if len(row) == 3 else "no preference, as those before it are"
            raise RowError(f"{where}: {what}")
        yield row


def _placed_rows(file: Path) -> Iterator[Placed]:
    """The rows of one file, each with its place."""
    if is_parquet(file):
        yield from _of_parquet(file)
        return
    if file.suffix.lower() == ".parquet":
        raise RowError(f"{file.name}: not a Parquet table")
    try:
        text = given.read_text(file)
    except given.Unreadable as error:
        raise RowError(f"{file.name}: cannot be read: {error}") from error
    begin = text.lstrip("\ufeff \t\r\n")
    if begin.startswith("{"):
        yield from _of_json(file, text)
    elif _names_fields(text):
        yield from _of_csv(file, text)
    elif begin and (problem := _MEANT.get(file.suffix.lower()) or (_LINES if re.match(r"\[\s*\{", begin) else None)):
        raise RowError(f"{file.name}, line {text.count(chr(10), 0, len(text) - len(begin)) + 1}: {problem}")
    else:
        lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
        yield from ((f"{file.name}, line {number}", ("", line)) for number, line in lines if line)


def _of_json(file: Path, text: str) -> Iterator[Placed]:
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if line.strip():
            where = f"{file.name}, line {number}"
            try:
                body = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RowError(f"{where}: not JSON ({error})") from error
            if not isinstance(body, dict):
                raise RowError(f"{where}: not an object")
            yield where, _row(body, where)


def _of_csv(file: Path, text: str) -> Iterator[Placed]:
    csv.field_size_limit(given.MOST_TEXT)
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        for body in reader:
            where = f"{file.name}, line {reader.line_num}"
            if None in body:
                raise RowError(f"{where}: more fields than the first line names")
            yield where, _row({name: value for name, value in body.items() if value is not None}, where)
    except csv.Error as error:
        raise RowError(f"{file.name}, line {reader.reader.line_num}: not CSV ({error})") from error


def _of_parquet(file: Path) -> Iterator[Placed]:
    import pyarrow  # the daemon never needs it
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            known = ("prompt", *ANSWERS, *PAIR, "messages", "text")
            there = table.schema_arrow.names
            names = [name for name in known if name in there]
            if not names:
                raise RowError(f"{file.name}: it needs {FIELDS}, and has {', '.join(map(repr, there)) or 'nothing'}")
            for batch in table.iter_batches(columns=names):
                for body in batch.to_pylist():
                    number += 1
                    where = f"{file.name}, row {number}"
                    yield where, _row({name: value for name, value in body.items() if value is not None}, where)
    except (pyarrow.ArrowException, OSError) as error:
        raise RowError(f"{file.name}: not readable as Parquet after row {number} ({error})") from error


def _names_fields(text: str) -> bool:
    names = {name.strip().strip('"') for name in text.lstrip("\ufeff").partition("\n")[0].split(",")}
    return "text" in names or ("prompt" in names and (not names.isdisjoint(ANSWERS) or names.issuperset(PAIR)))


def _row(body: Mapping[str, Any], where: str) -> Row | Preference:
    if "messages" in body:
        return _conversation(body["messages"], where)
    if "prompt" in body:
        key = next((key for key in ANSWERS if key in body), None)
        if key is None and not body.keys().isdisjoint(PAIR):
            return _preference(body, where)
        if key is None:
            raise RowError(f"{where}: prompt without answer or completion, or chosen and rejected")
        return _text(body, "prompt", where), _text(body, key, where)
    if "text" in body:
        return "", _text(body, "text", where)
    raise RowError(f"{where}: it needs {FIELDS}, and has {', '.join(map(repr, body)) or 'nothing'}")


def _preference(body: Mapping[str, Any], where: str) -> Preference:
    """A prompt that is a text or a conversation, and two answers, each a text or a list of one message."""
    prompt = body["prompt"]
    asked = _turns(prompt, f"{where}: prompt") if isinstance(prompt, list) else _text(body, "prompt", where)
    if asked == ():
        raise RowError(f"{where}: prompt must not be an empty list")
    chosen, rejected = (_said(body, key, where) for key in PAIR)
    if chosen == rejected:
        raise RowError(f"{where}: chosen and rejected are the same")
    return asked, chosen, rejected


def _said(body: Mapping[str, Any], key: str, where: str) -> str:
    """An answer: a text, or the one message of the assistant."""
    if not isinstance(body.get(key), list):
        return _text(body, key, where)
    turns = _turns(body[key], f"{where}: {key}")
    if len(turns) != 1 or turns[0][0] != "assistant":
        raise RowError(f"{where}: {key} must be text or one message of the assistant, what precedes it is the prompt")
    return turns[0][1]


def _conversation(messages: Any, where: str) -> Row:
    if not isinstance(messages, list) or len(messages) < 2:
        raise RowError(f"{where}: messages must be a list of at least two")
    turns = _turns(messages, f"{where}: messages")
    if turns[-1][0] != "assistant":
        raise RowError(f"{where}: the last of messages must be the assistant's")
    return turns[:-1], turns[-1][1]


def _turns(messages: Sequence[Any], where: str) -> Turns:
    """Messages as (role, content); `where` names the list."""
    turns = []
    for place, message in enumerate(messages):
        here = f"{where}[{place}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise RowError(f"{here}.role must be one of {', '.join(ROLES)}")
        turns.append((message["role"], _text(message, "content", here)))
    return tuple(turns)


def _text(body: Mapping[str, Any], key: str, where: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise RowError(f"{where}: {key} must be text, it is {'missing' if value is None else type(value).__name__}")
    if not value.isascii() and _HALF.search(value):
        raise RowError(f"{where}: {key} holds half a character (a surrogate alone), which no tokenizer takes")
    return value


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(asdict(contents(Path(sys.argv[1])))))
    except RowError as refused:
        sys.exit(str(refused))
