"""Training trials one after another leave descriptors, processes, threads and disk as they were, and memory returns.

The real runner and worker processes, and real training of a tiny model; every fourth trial runs out of memory, is no
number or is killed. Run as a program it prints what was measured: python tests/crash/test_trials_in_a_row.py 200
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from coaching import train_spec
from lives import children_of
from tiny import tiny_model
from toy_house import House

from safety.yardstick import bilingual
from state.jobs import JobFailed, JobSpec

TABLE = Path(__file__).resolve().parents[1] / "faulty_training.py"
MISHAPS = (None, None, None, "memory:2", None, None, None, "loss:2", None, None, None, "kill:2:once")
WARM = 5
MOST_MIB = {"daemon_mib": 8.0, "nursery_mib": 4.0}
"""How much memory may be more at the end than after the first trials; what is kept of each trial is some hundred bytes
of tables."""

Sample = dict[str, float]


def trials(folder: Path, count: int) -> Iterator[Sample]:
    """What there is after each of so many trials, and how long each took."""
    words = tiny_model(folder / "model", bilingual.VOCABULARY[3:], seed=1)
    (folder / "rows").write_text(
        "".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in bilingual.corpus("expert_maths", 0, 40))
    )
    with House(folder / "var", table=TABLE) as house:
        inputs = {
            "model": house.registry.add_copy(words, "model"),
            "data:expert_maths": house.registry.add_copy(folder / "rows", "data"),
        }
        for number in range(count):
            spec = replace(train_spec(0, 3, seed=number, batch=4, save_steps=1), inputs=inputs)
            if mishap := MISHAPS[number % len(MISHAPS)]:
                spec = replace(spec, params={**spec.params, "mishap": mishap})
            began = time.monotonic()
            with suppress(JobFailed):
                house.runner.run(spec)
            done = house.book.result(spec.digest)
            assert (done is None) == (mishap in ("memory:2", "loss:2")), spec
            yield {**looked_at(house, spec), "seconds": time.monotonic() - began}


def looked_at(house: House, spec: JobSpec) -> Sample:
    nursery, workers = house.runner.pids()
    assert nursery is not None
    stray = [file for file in (house.folder / "jobs").rglob("*") if not file.name.startswith("worker.log")]
    incoming = list((house.folder / "incoming").iterdir())
    return {
        "daemon_mib": resident(os.getpid()), "nursery_mib": resident(nursery),
        "daemon_descriptors": descriptors(os.getpid()), "nursery_descriptors": descriptors(nursery),
        "threads": len(list(Path("/proc/self/task").iterdir())), "workers": len(workers),
        "processes": len(children_of(nursery)), "stray_files": len(stray) + len(incoming),
    }


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid: int) -> float:
    """MiB that are the process's own: what it shares with others or with a file left out."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


@pytest.mark.parametrize("count", [16, pytest.param(200, marks=pytest.mark.long)])
def test_trials_in_a_row_leave_everything_flat(tmp_path: Path, count: int) -> None:
    samples = list(trials(tmp_path, count))
    warm, last = samples[WARM], samples[-1]
    for sample in samples[WARM:]:
        for name in ("daemon_descriptors", "nursery_descriptors", "threads", "workers", "processes", "stray_files"):
            assert sample[name] <= warm[name], (name, warm, sample)
    for name, most in MOST_MIB.items():
        assert last[name] - warm[name] <= most, (name, warm, last)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = list(trials(Path(place), int(sys.argv[1])))
    for sample in found[:: max(1, len(found) // 10)] + found[-1:]:
        sys.stdout.write(json.dumps({name: round(value, 2) for name, value in sample.items()}) + "\n")
    seconds = sum(sample["seconds"] for sample in found)
    sys.stdout.write(json.dumps({"trials": len(found), "seconds": round(seconds, 1)}) + "\n")
