"""The reading commands on a ledger of a million rows, as multiples of the start of bare Python.

The ledger is made with the real migrations and a real chain. Each run of a command is paired with a run of
`python -c pass` right beside it; the ratio of the two wall times is the figure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.figure import Figure
from state.chain import START, hash_row
from state.database import Database

ROWS = 1_000_000
PAIRS = 15
GOAL = 12.0
COMMANDS = {
    "log -n 20": ["log", "-n", "20"],
    "show": ["show", "777777"],
    "status": ["status"],
}
ACCEPTED = (0, 1, 2, 3)                       # what `status` may say about a daemon that is not running


def figures() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="kaizend-bench-") as folder:
        home = Path(folder)
        make_ledger(home, ROWS)
        kaizend = Path(sys.executable).with_name("kaizend")
        for name, words in COMMANDS.items():
            command = [str(kaizend), *words, "-c", str(home)]
            bare = [sys.executable, "-c", "pass"]
            timed(command), timed(bare)       # warm
            ratios = [timed(command) / timed(bare) for _ in range(PAIRS)]
            yield Figure.of(f"{name} on {ROWS} rows, in starts of bare Python", ratios, GOAL)


def timed(command: Sequence[str]) -> float:
    """Wall seconds of one run."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode not in ACCEPTED or b"Traceback" in done.stderr:
        raise RuntimeError(f"{command} failed: {done.stderr.decode()}")
    return seconds


def make_ledger(home: Path, count: int) -> None:
    """A state folder with `count` chained rows: opened and closed cycles of the three loops."""
    (home / "kaizend.toml").write_text("[models]\n")
    (home / "var").mkdir()
    database = Database(home / "var" / "kaizend.db")
    database.migrate()
    with database.transaction() as connection:
        raw = connection.connection.cursor()
        prev = START
        batch = []
        for number in range(1, count + 1):
            fields = row(number, prev)
            prev = fields["hash"]
            batch.append(tuple(
                json.dumps(fields[name]) if name in ("change", "evidence", "cost") else fields[name] for name in COLUMNS
            ))
            if len(batch) == 10_000 or number == count:
                marks = ", ".join("?" * len(COLUMNS))
                raw.executemany(f"INSERT INTO ledger ({', '.join(COLUMNS)}) VALUES ({marks})", batch)
                batch.clear()
        raw.executemany("INSERT INTO counters (subject, loop, verdict, count) VALUES (?, ?, ?, ?)", [
            ("opened", loop, "", count // 6) for loop in LOOPS
        ] + [("closed", loop, verdict, count // 12) for loop in LOOPS for verdict in VERDICTS])
    database.close()


LOOPS, VERDICTS = ("architecture", "pipeline", "reward"), ("PROMOTED", "REJECTED")
COLUMNS = (
    "id", "time", "event", "cycle", "parent", "loop", "change", "verdict", "reason", "base", "result", "evidence",
    "cost", "actor", "prev", "hash",
)


def row(number: int, prev: str) -> dict[str, object]:
    """The fields of one row, hash included."""
    closed = number % 2 == 0
    fields: dict[str, object] = {
        "id": number, "time": f"2026-01-01T00:00:{number * 59 / ROWS:09.6f}Z",
        "event": "closed" if closed else "opened",
        "cycle": number - 1 if closed else None, "parent": None, "loop": LOOPS[number // 2 % 3],
        "change": {"kind": "merge", "operator": "task_arithmetic", "parents": ["a" * 64, "b" * 64]},
        "verdict": VERDICTS[number // 2 % 2] if closed else None, "reason": "it does not beat the incumbent",
        "base": "a" * 64, "result": None, "evidence": {"fitness": 0.5, "n": 200}, "cost": {"seconds": 1.0},
        "actor": "loop", "prev": prev,
    }
    return {**fields, "hash": hash_row(fields)}
