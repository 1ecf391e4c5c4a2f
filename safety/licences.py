"""What a model's card says of its licence, what that asks of whoever passes a derived model on, and how several join.

Licences go by the identifiers of Hugging Face model cards, lower case ("apache-2.0", "llama3.2"); one that a card gives
a name of its own ("license: other") is "other:<name>", so that no card can pass its own terms off as a known licence.
A derived model carries the union: every licence in its card's front matter, every parent's notice files beside it.
Standard library only. Invariant: joining is associative and commutative, gives back what it is given alone, and reads
back what it wrote. What a licence asks for is a reminder in a few words and no legal advice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from state import given
from state.errors import one_line

CARD: Final = "README.md"
LINEAGE: Final = "lineage.json"
BILL: Final = "bom.cdx.json"
OWN: Final = (CARD, LINEAGE, BILL)
"""Files that speak of one model alone: what is derived from it has its own."""
LONGEST_CARD: Final = 16 * 2**20
UNKNOWN: Final = "unknown"
OTHER: Final = "other"
NOTICE: Final = re.compile(
    r"(licen[sc]es?|copying|copyright|notices?|use[-_ ]policy|acceptable[-_ ]use|attribution|third[-_ ]party|patents)"
    r"(?![a-z])[^/]*", re.IGNORECASE,
)
"""The names of files that a licence may ask to be carried along."""
MARK: Final = re.compile(r"-[0-9a-f]{8}(?=(?:\.[A-Za-z]+)?$)")
"""What tells apart two notices of the same name: the first digits of their SHA-256, before the ending."""
PLAIN: Final = re.compile(r"[a-z][a-z0-9.+_/-]*")

KEEPS = "keep the copyright notice and the text of the licence with it"
CHANGES = "say that the model was changed"
CREDIT = "credit the makers, link the licence and say what was changed"
ALIKE = "pass it on under the same licence"
SOURCE = "give whoever gets it the source"
HONEST = "no commercial use"
POLICY = "pass on the limits of what it may be used for, with the text of the licence"
ASKS: Final[Sequence[tuple[str, Sequence[str]]]] = (
    (r"cc0-1\.0|unlicense|wtfpl|0bsd|mit-0|pddl", ()),
    (r"mit|isc|zlib|ncsa|postgresql|bsd(-\d-clause.*)?|bsl-1\.0", (KEEPS,)),
    (r"apache-2\.0", (KEEPS, "carry its NOTICE file along", CHANGES)),
    (r"cc-by-\d\.\d|odc-by|cdla-permissive-\d\.\d", (CREDIT,)),
    (r"cc-by-sa-\d\.\d|odbl|cdla-sharing-1\.0", (CREDIT, ALIKE)),
    (r"cc-by-nc-\d\.\d", (CREDIT, HONEST)),
    (r"cc-by-nc-sa-\d\.\d", (CREDIT, HONEST, ALIKE)),
    (r"cc-by-nd-\d\.\d", (CREDIT, "changed versions may not be passed on")),
    (r"cc-by-nc-nd-\d\.\d", (CREDIT, HONEST, "changed versions may not be passed on")),
    (r"(a|l)?gpl(-\d.*)?|mpl-2\.0|epl-\d\.\d|eupl-\d\.\d|osl-3\.0", (KEEPS, ALIKE, SOURCE)),
    (r"llama2", ("carry the agreement and its notice line along", POLICY)),
    (r"llama3", ("carry the agreement and its notice line along", POLICY,
                 'show "Built with Meta Llama 3"', 'begin the name of the model with "Llama 3"')),
    (r"llama(3\.\d|4)", ("carry the agreement and its notice line along", POLICY,
                         'show "Built with Llama"', 'begin the name of the model with "Llama"')),
    (r"gemma", ("carry the terms and their notice line along", POLICY, CHANGES)),
    (r".*openrail.*|.*-rail-.*", (KEEPS, POLICY, CHANGES)),
)
"""What licences ask of whoever passes a derived model on, by their whole name."""
NOT_KNOWN: Final = ("read it: what it asks is not known here",)


@dataclass(frozen=True, slots=True, order=True)
class Licence:
    """One licence of a model. `link` is where the text of one with its own name is, as the card says, or ""."""

    name: str
    link: str = ""

    @property
    def own(self) -> str:
        """The name that the card itself gave; "" for one of the known identifiers."""
        return self.name.removeprefix(f"{OTHER}:") if self.name.startswith(f"{OTHER}:") else ""

    @property
    def asks(self) -> tuple[str, ...]:
        """What it asks of whoever passes a derived model on, a few words each; empty where it asks nothing."""
        known = (tuple(asked) for names, asked in ASKS if re.fullmatch(names, self.name))
        return next(known, NOT_KNOWN)


@dataclass(frozen=True, slots=True)
class Obligations:
    """What a derived model carries: licences, and notice files by the name they get in its folder."""

    licences: tuple[Licence, ...]
    notices: Mapping[str, Path]

    def write_notices(self, folder: Path) -> None:
        """Copy the notice files into a folder."""
        for name, source in self.notices.items():
            (folder / name).write_bytes(source.read_bytes())

    def front_matter(self, *more: str) -> str:
        """The front matter of a model card, with further lines; what `licences_in` reads back."""
        own = [licence for licence in self.licences if licence.own]
        known = [licence.name for licence in self.licences if not licence.own]
        lines = [_said("license", [*known, *([OTHER] if own else [])])]
        lines += [_said("license_name", [licence.own for licence in own])] if own else []
        lines += [_said("license_link", [licence.link for licence in own])] if any(x.link for x in own) else []
        return "\n".join(["---", *lines, *more, "---"]) + "\n"

    def in_words(self) -> str:
        """A section of a model card: each licence with what it asks for, and the notices that lie beside the card."""
        lines = ["## Licences", ""]
        for licence in self.licences:
            link = f" ({one_line(licence.link)})" if licence.link else ""
            asked = "; ".join(licence.asks) or "asks for nothing"
            lines.append(f"- `{one_line(licence.own or licence.name)}`{link}: {asked}")
        if self.notices:
            lines += ["", "Carried along: " + ", ".join(f"`{one_line(name)}`" for name in self.notices) + "."]
        lines += ["", "Read from the cards of the models that went in. This is no legal advice."]
        return "\n".join(lines) + "\n"


def licences_of(folder: Path) -> list[str]:
    """The names of a model's licences in the order of its card; ["unknown"] where it names none."""
    return [licence.name for licence in licences_in(card_of(folder))]


def obligations_of(folders: Iterable[Path]) -> Obligations:
    """What a model derived from all of these carries."""
    found = list(folders)
    notices, renamed = _joined_notices(found)
    licences = {
        Licence(licence.name, renamed.get((folder, licence.link), licence.link))
        for folder in found for licence in licences_in(card_of(folder))
    }
    return Obligations(tuple(sorted(licences)), notices)


def is_notice(name: str) -> bool:
    """Whether a file of this name is carried along from every parent."""
    return NOTICE.fullmatch(name) is not None


def is_inherited(name: str) -> bool:
    """Whether a file of this name is taken from the template as it is."""
    return name not in OWN and not is_notice(name)


def card_of(folder: Path) -> str:
    """The text of README.md; "" where there is none that can be read."""
    try:
        return given.read_bytes(folder / CARD, LONGEST_CARD).decode("utf-8-sig", errors="replace")
    except given.Unreadable:
        return ""


def licences_in(card: str) -> list[Licence]:
    """The licences in a card's front matter. One that joins several, as merged models have, is taken apart:
    "apache-2.0 and mit", "[apache-2.0, mit]" or a list with one a line.
    """
    parts = re.split(r"^---\s*$", card, maxsplit=2, flags=re.MULTILINE)
    front = parts[1] if len(parts) == 3 and not parts[0].strip() else ""
    said = [name.lower() for value in _values(front, "licen[sc]e") for name in _apart(value)]
    names, links = _values(front, "licen[sc]e_name"), _values(front, "licen[sc]e_link")
    links += [""] * (len(names) - len(links))
    own = [Licence(f"{OTHER}:{name.lower()}", link) for name, link in zip(names, links, strict=False) if name]
    found = [Licence(name) for name in said if name != OTHER]
    found += (own or [Licence(OTHER)]) if OTHER in said else []
    return list(dict.fromkeys(found)) or [Licence(UNKNOWN)]


def _apart(value: str) -> Iterator[str]:
    parts = (part.strip("\"'") for part in re.split(r"\s+(?:and|\+)\s+|\s*[,&;\[\]]\s*", value, flags=re.IGNORECASE))
    return (part for part in parts if part)


def _values(front: str, key: str) -> list[str]:
    """The values of a key of the front matter: a scalar, a list in brackets, or one a line; also over several lines,
    with blank lines and comments between them. No YAML beyond that.
    """
    found = re.search(rf"^{key}:(.*(?:\n(?:[ \t].*|- .*|#.*|-?\r?$))*)", front, flags=re.MULTILINE | re.IGNORECASE)
    entries: list[str] = []
    for line in (_uncommented(line) for line in (found.group(1).split("\n") if found else ())):
        if line == "-" or line.startswith("- "):
            entries.append(line[1:].strip())
        elif line and entries:
            entries[-1] = f"{entries[-1]} {line}".strip()
        elif line:
            entries.append(line)
    if len(entries) == 1 and entries[0].startswith("[") and entries[0].endswith("]"):
        entries = [part for part in entries[0][1:-1].split(",") if part.strip()]
    values = [_scalar(entry) for entry in entries]
    return values if any(values) else []


def _uncommented(line: str) -> str:
    """A line without its comment; where a quote may hold the sign, `_scalar` looks closer."""
    return line.strip() if "'" in line or '"' in line else re.split(r"(?:^|\s)#", line)[0].strip()


def _scalar(text: str) -> str:
    """A plain or quoted YAML scalar, its comment taken off."""
    text = text.strip()
    quoted = re.match(r'"(?:[^"\\]|\\.)*"', text)
    if quoted:
        try:
            return str(json.loads(quoted.group()))
        except ValueError:
            return quoted.group().strip('"')
    return re.split(r"(?:^|\s)#", text)[0].strip().strip("\"'")


def _said(key: str, values: Sequence[str]) -> str:
    """One key of the front matter; several values as a list."""
    written = [value if PLAIN.fullmatch(value) else json.dumps(value) for value in values]
    return f"{key}: {written[0]}" if len(written) == 1 else f"{key}:\n" + "\n".join(f"- {value}" for value in written)


def _joined_notices(folders: Iterable[Path]) -> tuple[dict[str, Path], dict[tuple[Path, str], str]]:
    """The notice files of all folders, the same content once: {name in the joined folder: file}, and which name a
    folder's file got there. Where contents differ under one name, each carries the digits of its content.
    """
    contents: dict[str, dict[str, Path]] = defaultdict(dict)
    named: dict[tuple[Path, str], tuple[str, str]] = {}
    for folder in folders:
        for file in sorted(folder.iterdir()):
            if not is_notice(file.name) or not given.is_file(file):
                continue
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            stem = MARK.sub("", file.name)
            contents[stem].setdefault(digest, file)
            named[folder, file.name] = stem, digest
    joined = {
        _marked(stem, digest) if len(files) > 1 else stem: file
        for stem, files in sorted(contents.items()) for digest, file in sorted(files.items())
    }
    return joined, {
        place: _marked(stem, digest) if len(contents[stem]) > 1 else stem for place, (stem, digest) in named.items()
    }


def _marked(stem: str, digest: str) -> str:
    name, dot, ending = stem.rpartition(".")
    plain = dot and ending.isalpha()
    return f"{name}-{digest[:8]}.{ending}" if plain else f"{stem}-{digest[:8]}"
