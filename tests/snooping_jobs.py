"""Jobs careless with what is sealed, and proposers' jobs that look for what those left. Loaded with `--table`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from safety.yardstick.sealed import seal_tasks
from state.jobs import Desk, JobSpec, Produced
from state.records import canonical

MARK = re.compile(rb"(?:vault-item|vault-outcome|file-item)-[0-9a-f]{32}")
"""What every sealed item, every outcome and every item of a file of the tests holds; this pattern itself does not
match. Which items of a file are sealed the tests know, not the jobs."""
LEFT_BEHIND: list[str] = []
LARGEST_REGION = 256 * 2**20


def careless_gate(spec: JobSpec, desk: Desk) -> Produced:
    """Reads the vault as a gate does and leaves it everywhere in its process."""
    text = (desk.inputs["vault"] / "items.jsonl").read_text()
    outcome = "vault-outcome-" + MARK.search(text.encode()).group()[-32:].decode()[::-1]     # type: ignore[union-attr]
    desk.cache["items"] = [text, outcome]
    LEFT_BEHIND.extend([text, outcome])
    os.environ["LEFT_BEHIND"] = outcome
    scores = desk.folder / "scores.json"
    scores.write_text(f'["{outcome}"]')
    return Produced({"outcome": outcome, "pid": os.getpid()}, {"scores": scores})


def careless_seal(spec: JobSpec, desk: Desk) -> Produced:
    """The real sealing, which leaves what it read everywhere in its process."""
    produced = seal_tasks(spec, desk)
    for task in spec.params["tasks"]:
        text = Path(task["source"]["path"]).read_text()
        desk.cache[task["name"]] = text
        LEFT_BEHIND.append(text)
        os.environ["LEFT_BEHIND"] = text
    return produced


def snoop(spec: JobSpec, desk: Desk) -> Produced:
    """Where marks were found, among all that this process was given or inherited."""
    found = {
        "its own order": canonical(spec.to_json()).encode(),
        "what an earlier job left in its cache": repr(desk.cache).encode(),
        "what an earlier job left in its modules": repr(LEFT_BEHIND).encode(),
        "its environment": repr(os.environ).encode() + content_of(Path("/proc/self/environ")),
        "its command line": content_of(Path("/proc/self/cmdline")),
        "its inputs": b"".join(map(content_of, (f for p in desk.inputs.values() for f in (p, *p.rglob("*"))))),
        "its scratch folder": b"".join(map(content_of, desk.folder.rglob("*"))),
        "its open files": b"".join(open_files()),
        "its memory": b" ".join(marks_in_memory()),
    }
    return Produced({
        "found": sorted(where for where, content in found.items() if MARK.search(content)), "pid": os.getpid(),
        "marks": marks_of(found.values()),
        "looked": {where: len(content) for where, content in found.items()},
    })


def wander(spec: JobSpec, desk: Desk) -> Produced:
    """Where marks are in the files around it: in the whole state folder, in its own room, and at and beside the
    paths that it was told outright."""
    told = [Path(path) for path in spec.params["paths"]]
    around = {desk.folder.parent, desk.folder.parent.parent, *(path.parent for path in desk.inputs.values())}
    folders = {Path(spec.params["state"]), *around, *(path.parent for path in told)}
    files = [file for folder in sorted(folders) for file in every_file(folder)] + told
    files += [Path("/proc/self/fd") / name for name in ("1", "2")]
    found = {str(file): content for file in files if MARK.search(content := content_of(file))}
    return Produced({"found": sorted(found), "looked": len(files), "marks": marks_of(found.values())})


def marks_of(contents: Iterable[bytes]) -> list[str]:
    """Every mark that was found, once."""
    return sorted({mark.decode() for content in contents for mark in MARK.findall(content)})


def every_file(folder: Path) -> list[Path]:
    return [Path(at) / name for at, _, names in os.walk(folder) for name in names]


def content_of(file: Path) -> bytes:
    try:
        return file.read_bytes() if not file.is_dir() else b""
    except OSError:
        return b""


def open_files() -> Iterator[bytes]:
    """What every inherited descriptor lets it read, files that were deleted since and folders too."""
    for name in os.listdir("/proc/self/fd"):
        try:
            number = int(name)
            yield os.readlink(f"/proc/self/fd/{name}").encode()
            yield repr(os.listdir(number)).encode() if os.path.isdir(f"/proc/self/fd/{name}") else b""
            yield os.pread(number, 1 << 24, 0)
        except OSError:
            continue


def marks_in_memory() -> Iterator[bytes]:
    """Marks in what its own address space holds, freed or not."""
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps.read().splitlines():
            span, access, *rest = line.split()
            low, high = (int(end, 16) for end in span.split("-"))
            if access.startswith("rw") and high - low <= LARGEST_REGION and "[v" not in " ".join(rest):
                try:
                    memory.seek(low)
                    yield from MARK.findall(memory.read(high - low))
                except OSError:
                    continue


JOBS = {
    "gate": "snooping_jobs:careless_gate", "seal": "snooping_jobs:careless_seal", "screen": "snooping_jobs:snoop",
    "train": "snooping_jobs:snoop", "compare": "snooping_jobs:snoop", "score": "snooping_jobs:wander",
}
