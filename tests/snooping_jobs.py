"""A gate that is careless with the vault, and proposers' jobs that look for what it left. Loaded with `--table`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from state.jobs import Desk, JobSpec, Produced
from state.records import canonical

MARK = re.compile(rb"(?:vault-item|vault-outcome)-[0-9a-f]{32}")
"""What every sealed item and every outcome of the test holds; this pattern itself does not match."""
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
        "looked": {where: len(content) for where, content in found.items()},
    })


def wander(spec: JobSpec, desk: Desk) -> Produced:
    """Where marks are in the files around it: in the whole state folder, and at the paths that it was told outright."""
    state = Path(spec.params["state"])
    files = [*every_file(state), *every_file(desk.folder.parent.parent), *map(Path, spec.params["paths"])]
    found = {str(file) for file in files if MARK.search(content_of(file))}
    log = [name for name in ("1", "2") if MARK.search(content_of(Path("/proc/self/fd") / name))]
    return Produced({"found": sorted(found) + log, "looked": len(files)})


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
    "gate": "snooping_jobs:careless_gate", "seal": "snooping_jobs:careless_gate", "screen": "snooping_jobs:snoop",
    "train": "snooping_jobs:snoop", "compare": "snooping_jobs:snoop", "score": "snooping_jobs:wander",
}
