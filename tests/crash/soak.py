"""The soak: hours of the real daemon on really trained small models, with faults of every kind, and what stays flat.

    python tests/crash/soak.py [RESULT.json]            SOAK_MINUTES=120 by default, SOAK_SEED=0

Two storms and a long calm between them, so that the calm has a database to read that has outgrown the caches. In the
calm one daemon lives on, only workers are killed, and every two seconds its memory, open descriptors, threads and
processes are counted: their slopes are those of the calm, so that a leak shows. In a storm the daemon is killed,
alone or with its workers, stopped, and struck by faults at named moments; `kaizend gc` runs in between. Disk is
counted after it, with nothing running: what grows by design (artefacts that the registry names, the database) apart
from what nobody named, which is what has to stay flat. At the end the ledger is verified.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from lives import PACKAGES, Life, Unit, children_of, frozen_house, kill  # noqa: E402
from miniature import copy_of, make_models  # noqa: E402
from mishaps import memory_folder, shim_in  # noqa: E402

ENDLESS = 10**6
SAMPLE_SECONDS = 2.0
STORM, CALM = 1 / 6, 2 / 3      # of the whole
WARM = 1 / 2                    # of a calm: caches and connections fill over some hundred rows, which is no leak
TELLING_SECONDS = 600.0         # a calm that is shorter after that tells nothing about slopes
STALLED_SECONDS = 30.0
BLOCK, DRAWS = 10, 2000         # of the bootstrap: samples a block, resamples
FLAT_PER_HOUR = {"rss_mib": 2.0, "descriptors": 1.0, "threads": 1.0, "processes": 1.0, "stray_mib": 1.0}
FAULTS = ("kill", "kill", "enospc", "short", "eio", "sick", "clock", "raise")
POINTS = sorted({
    name for package in PACKAGES for source in (ROOT / package).rglob("*.py")
    for name in re.findall(r"failpoint\(\"([a-z.]+)\"\)", source.read_text())
    if not name.startswith(("backup", "restore", "checkpoint", "registry.remove", "database", "registry.copy"))
})
Sample = tuple[float, float]


@dataclass
class Soak:
    life: Life
    unit: Unit
    chance: random.Random
    struck: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    calms: list[dict[str, list[Sample]]] = field(default_factory=list)
    disk: dict[str, list[Sample]] = field(default_factory=lambda: {"stray_mib": [], "kept_mib": []})
    began: float = field(default_factory=time.monotonic)

    def calm(self, seconds: float) -> None:
        """One daemon for so long; a busy worker is killed now and then."""
        samples: dict[str, list[Sample]] = {}
        process, start = self.life.start(), time.monotonic()
        killed, moved, rows = start, start, -1
        while (now := time.monotonic()) < start + seconds:
            time.sleep(SAMPLE_SECONDS)
            if process.poll() is not None:
                self.problems.append(f"the daemon ended with {process.returncode} in a calm: {self.life.last_words()}")
                return
            if now > start + WARM * seconds:
                for name, value in counted(process.pid, self.unit).items():
                    samples.setdefault(name, []).append(((now - self.began) / 3600, value))
            if now > killed + 15 and (workers := self.unit.workers()):
                killed, found = now, kill(workers[0])
                self.struck["kill of a worker"] += found
            if (found_rows := self.rows()) != rows:
                rows, moved = found_rows, now
            elif now > moved + STALLED_SECONDS:
                self.kaizend("resume")                              # the breaker paused it: failures in a row
                moved = now
        self.calms.append(samples)
        self.end(process)

    def storm(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.blow()
            self.problems += self.life.problems()
            if self.chance.random() < 0.2:
                self.tidy()
        self.tidy()

    def blow(self) -> None:
        """One life of the daemon and its end."""
        how = self.chance.choice(("daemon", "both", "stop", "moment", "moment", "moment"))
        if how == "moment":
            fault, point = self.chance.choice(FAULTS), self.chance.choice(POINTS)
            mark = self.life.folder / "struck"
            mark.unlink(missing_ok=True)
            process = self.life.start(
                KAIZEND_FAILPOINT=f"{point}:{self.chance.choice((1, 2, 5, 9))}={fault}",
                KAIZEND_FAILPOINT_ONCE=str(mark), KAIZEND_MISHAP_ROOT=str(self.life.state),
            )
            self.wait(process, self.chance.uniform(4, 15))
            self.struck[fault] += mark.exists()
            self.end(process)
            return
        process = self.life.start()
        self.wait(process, self.chance.uniform(1, 12))
        if how == "stop":
            self.struck["stop"] += 1
            self.end(process)
            return
        workers = self.unit.workers() if how == "both" else []
        process.kill()
        for pid in workers:
            kill(pid)
        self.life.ended(process)
        self.struck[f"kill of {how}"] += 1

    def wait(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        until = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            status = process.wait(60)
        except subprocess.TimeoutExpired:
            self.problems.append(f"it did not stop within a minute: {self.life.last_words()}")
            process.kill()
            status = process.wait()
        if status not in (0, -9, -15, 1, 2, 70):                    # lives.py is no command: errors end it with 1
            self.problems.append(f"it ended with {status}: {self.life.last_words()}")

    def tidy(self) -> None:
        """`kaizend gc --apply`, then what lies in the state folder, by who answers for it."""
        done = self.kaizend("gc", "--apply")
        if done.returncode:
            self.problems.append(f"gc ended with {done.returncode}: {done.stderr}")
        kept = self.life.query("SELECT coalesce(sum(bytes), 0) FROM artefacts WHERE removed IS NULL")[0][0]
        used = sum(file.lstat().st_size for file in self.life.state.rglob("*") if file.is_file())
        named = kept + sum(file.stat().st_size for file in self.life.state.glob("kaizend.db*"))
        in_flight = sum(
            file.lstat().st_size for file in (self.life.state / "jobs").rglob("*") if file.is_file()
        )
        hours = (time.monotonic() - self.began) / 3600
        self.disk["stray_mib"].append((hours, (used - named) / 2**20))
        self.disk["kept_mib"].append((hours, named / 2**20))
        self.disk.setdefault("scratch_mib", []).append((hours, in_flight / 2**20))

    def kaizend(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "daemon", *words], cwd=self.life.folder, env=self.life.environment(),
            capture_output=True, text=True, timeout=120, check=False,
        )

    def rows(self) -> int:
        found = self.life.query("SELECT max(id) FROM ledger") if (self.life.state / "kaizend.db").exists() else []
        return int(found[0][0] or 0) if found else 0

    def result(self, minutes: float) -> dict[str, Any]:
        """Slopes with intervals, what was struck, what did not hold, and whether the ledger verifies."""
        slopes = {
            name: slope([calm.get(name, []) for calm in self.calms], self.chance)
            for name in sorted({name for calm in self.calms for name in calm})
        } | {name: slope([samples], self.chance) for name, samples in self.disk.items()}
        telling = minutes * 60 * CALM * (1 - WARM) >= TELLING_SECONDS
        for name, limit in FLAT_PER_HOUR.items():
            if name in slopes and telling:
                slopes[name]["flat"] = slopes[name]["low"] <= limit
        verified = self.kaizend("verify", "--json")
        body = json.loads(verified.stdout) if verified.stdout else {"holds": False, "problems": [verified.stderr]}
        roots = self.life.query("SELECT count(*) FROM cycles WHERE parent = 0 AND outcome IS NOT NULL")[0][0]
        verdicts = dict(self.life.query("SELECT verdict, count(*) FROM ledger WHERE event = 'closed' GROUP BY verdict"))
        return {
            "minutes": round(minutes, 1), "faults": self.struck.total(), "struck": dict(self.struck),
            "outermost cycles": roots, "rows": body.get("rows"), "verdicts": verdicts, "per hour": slopes,
            "ledger holds": body["holds"], "problems": [*self.problems, *body["problems"]],
            "flat": all(found.get("flat", True) for found in slopes.values()) if telling else None,
        }


def counted(pid: int, unit: Unit) -> dict[str, float]:
    """What the daemon holds, and how many processes there are with its workers."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in status.splitlines())
             if key in ("VmRSS", "Threads")}
    return {
        "rss_mib": found["VmRSS"] / 1024, "threads": found["Threads"],
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "processes": 1 + len(children_of(pid)) + len(unit.workers()),
    }


def slope(series: list[list[Sample]], chance: random.Random) -> dict[str, float]:
    """Per hour, within each series; mean; and a 95 % interval by resampling blocks of samples that belong together."""
    blocks: list[list[Sample]] = []
    for samples in series:
        if len(samples) < 3:
            continue
        at, of = (sum(part) / len(samples) for part in zip(*samples, strict=True))
        centred = [(hour - at, value - of) for hour, value in samples]
        size = min(BLOCK, max(1, len(centred) // 3))
        blocks += [centred[start : start + size] for start in range(0, len(centred), size)]
    if not blocks:
        return {"slope": 0.0, "low": 0.0, "high": 0.0, "mean": 0.0, "samples": 0}

    def fitted(chosen: list[list[Sample]]) -> float:
        pairs = [pair for block in chosen for pair in block]
        over = sum(hour * hour for hour, _ in pairs)
        return sum(hour * value for hour, value in pairs) / over if over else 0.0

    drawn = sorted(fitted(chance.choices(blocks, k=len(blocks))) for _ in range(DRAWS))
    values = [value for samples in series for _, value in samples]
    return {
        "slope": fitted(blocks), "low": drawn[int(0.025 * DRAWS)], "high": drawn[int(0.975 * DRAWS)],
        "mean": sum(values) / len(values), "largest": max(values), "samples": len(values),
    }


def main() -> int:
    minutes, seed = float(os.environ.get("SOAK_MINUTES", "120")), os.environ.get("SOAK_SEED", "0")
    base = Path(tempfile.mkdtemp(prefix="kaizend-soak-", dir=memory_folder()))
    shim = shim_in(base)
    try:
        make_models(base / "trained")
        if shim is not None:
            os.environ["LD_PRELOAD"] = str(shim)
        os.environ |= {"MALLOC_ARENA_MAX": "1", "PYTHONMALLOC": "malloc"}   # as in the service's unit
        with Unit(frozen_house(base / "house"), base / "unit.sock") as unit:
            soak = Soak(Life(unit.house, copy_of(base / "trained", base / "life"), unit, ENDLESS), unit,
                        random.Random(seed))
            for phase, share in (soak.storm, STORM), (soak.calm, CALM), (soak.storm, 1 - STORM - CALM):
                phase(share * minutes * 60)
                tell(f"{soak.rows()} rows, {soak.struck.total()} faults, {len(soak.problems)} problems")
            found = soak.result((time.monotonic() - soak.began) / 60)
            soak.life.end()
    finally:
        shutil.rmtree(base, ignore_errors=True)
    text = json.dumps(found, indent=1)
    for place in sys.argv[1:2]:
        Path(place).write_text(text + "\n")
    tell(text)
    return 0 if found["ledger holds"] and found["flat"] is not False and not found["problems"] else 1


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
