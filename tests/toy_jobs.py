"""Small jobs for tests of the processes that run jobs. Loaded by a nursery with `--table`."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from state.jobs import Desk, JobSpec, Produced
from state.records import digest_of


def add(spec: JobSpec, desk: Desk) -> Produced:
    return Produced({"sum": sum(spec.params["numbers"])}, items=len(spec.params["numbers"]), tokens=7)


def write(spec: JobSpec, desk: Desk) -> Produced:
    """A folder "model" and a file "scores", both made from the seed."""
    model = desk.folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(f'{{"seed": {spec.seed}}}')
    scores = desk.folder / "scores.json"
    scores.write_text(digest_of(spec.seed))
    return Produced({"seed": spec.seed}, {"model": model, "scores": scores})


def read(spec: JobSpec, desk: Desk) -> Produced:
    return Produced({name: sorted(file.name for file in path.rglob("*")) for name, path in desk.inputs.items()})


def count(spec: JobSpec, desk: Desk) -> Produced:
    """Counts to `steps`, saving each step; continues from what is saved. `lines` says how often it began."""
    saved = desk.folder / "saved"
    with (desk.folder / "began").open("a") as began:
        began.write(f"{os.getpid()}\n")
    done, value = map(int, saved.read_text().split()) if saved.exists() else (0, spec.seed)
    for step in range(done, spec.params["steps"]):
        value = (value * 6364136223846793005 + step) % 2**61
        fresh = desk.folder / "fresh"
        fresh.write_text(f"{step + 1} {value}")
        fresh.replace(saved)
        desk.progress((step + 1) / spec.params["steps"], f"step {step + 1}")
        time.sleep(spec.params["pause"])
    model = desk.folder / "model"
    model.mkdir(exist_ok=True)
    (model / "value").write_text(str(value))
    return Produced({"value": value}, {"model": model})


def die(spec: JobSpec, desk: Desk) -> Produced:
    """Is killed the first `times` times."""
    began = desk.folder / "began"
    before = len(began.read_text()) if began.exists() else 0
    if before < spec.params["times"]:
        began.write_text("x" * (before + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return Produced({"deaths": before})


def climb(spec: JobSpec, desk: Desk) -> Produced:
    """Saves one step further each time it begins, and is killed, until it has saved `steps`."""
    steps = desk.folder / "steps"
    done = len(list(steps.glob("*")))
    if done < spec.params["steps"]:
        (steps / f"step-{done:09d}").mkdir(parents=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return Produced({"saved": done})


def fail(spec: JobSpec, desk: Desk) -> Produced:
    desk.cache["half changed"] = True
    raise ValueError("the loss is not finite\nat step 3 of 7")


def leave(spec: JobSpec, desk: Desk) -> Produced:
    sys.exit(5)


def nonsense(spec: JobSpec, desk: Desk) -> Produced:
    """Returns what a job must not: by `what`, a NaN, an output outside its folder, an output not written."""
    match spec.params["what"]:
        case "nan":
            return Produced({"loss": float("nan")})
        case "outside":
            return Produced({}, {"model": next(iter(desk.inputs.values()))})
        case _:
            return Produced({}, {"model": desk.folder / "nothing"})


def tell(spec: JobSpec, desk: Desk) -> Produced:
    """Everything about the process it runs in. Writes to its standard output, which is nobody's terminal."""
    sys.stdout.write("words on standard output\n")
    desk.cache["visits"] = desk.cache.get("visits", 0) + 1
    sockets = [fd.name for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink() and "socket" in os.readlink(fd)]
    return Produced({
        "pid": os.getpid(), "nursery": os.getppid(), "visits": desk.cache["visits"], "sockets": len(sockets),
        "half_changed": "half changed" in desk.cache, "cwd_is_scratch": Path.cwd() == desk.folder.resolve(),
        "random": random.random(), "environment": dict(os.environ), "device": desk.device, "threads": desk.threads,
        "killed_with_parent": parent_death_signal(), "terminal": os.isatty(1) or os.isatty(2),
    })


def parent_death_signal() -> int:
    import ctypes

    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(number), 0, 0, 0)                            # PR_GET_PDEATHSIG
    return number.value


def meet(spec: JobSpec, desk: Desk) -> Produced:
    """Is there for a while, and says from when to when."""
    came = time.monotonic()
    time.sleep(spec.params["seconds"])
    return Produced({"pid": os.getpid(), "came": came, "left": time.monotonic()})


def sleep(spec: JobSpec, desk: Desk) -> Produced:
    """Sleeps, with a process of its own that sleeps too; their ids are told at the start."""
    with subprocess.Popen(["sleep", str(spec.params["seconds"])]) as child:
        desk.progress(0.0, f"{os.getpid()} {child.pid}")
        time.sleep(spec.params["seconds"])
    return Produced({"slept": spec.params["seconds"]})


JOBS = {
    name: f"toy_jobs:{name}"
    for name in ("add", "write", "read", "count", "die", "climb", "fail", "leave", "nonsense", "tell", "meet", "sleep")
} | {"gate": "toy_jobs:read", "report": "toy_jobs:read", "train": "toy_jobs:tell", "absent": "no_such_module:work"}
