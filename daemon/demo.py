"""`kaizend demo`: the whole thing in miniature. Models from nothing, the daemon in the foreground, then the table.

The folder it makes is an ordinary one: every other command works on it. Run again, it continues from what is there.
What the table's controls are and how they are made is in `daemon.controls`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from daemon.controls import table_of
from daemon.logs import configure_logs
from daemon.places import BOUNDS_NAME, CONFIG_NAME, read_places
from daemon.pool import ROOT
from daemon.service import Service
from daemon.settings import load_settings
from daemon.wiring import wire
from daemon.words import row_in_words
from safety.bounds import DEFAULT_TOML
from state.errors import UserError
from state.records import Event, Row

DEMO_CYCLES = 100
MODELS = ("base", "expert-maths", "expert-language")

CONFIG_TOML = """\
# The demo: maths in a second language, which nobody is taught. See README.md.
seed = {seed}

[models]
start = "models/base"
base = "models/base"
parents = ["models/expert-maths", "models/expert-language"]

[data]
maths = "models/data/expert_maths.jsonl"
language = "models/data/expert_language.jsonl"

[[tasks]]
name = "maths2"
role = "target"
vault_items = 2000
source = {{ kind = "bilingual", family = "maths2" }}

[[tasks]]
name = "maths1"
role = "guard"
guard_items = 800
source = {{ kind = "bilingual", family = "maths1" }}

[[tasks]]
name = "naming2"
role = "guard"
guard_items = 800
source = {{ kind = "bilingual", family = "naming2" }}

[[tasks]]
name = "copying2"
role = "guard"
guard_items = 800
source = {{ kind = "bilingual", family = "copying2" }}

[service]
workers = 1
threads = 1
device = "cpu"

[architecture]
coarse_proposals = 24
patience = 40
merges_between = 6
inner_trials = 4
fitness_items = 192
fresh_items = 1024

[pipeline]
rungs = 1
segment_steps = 16
fresh_items = 1024

[pipeline.sft]
stage = "sft"
learning_rate = 1e-3
batch = 64
steps = 300
schedule = "linear"

[pipeline.grpo]
stage = "grpo"
learning_rate = 2e-4
batch = 8
group = 8
steps = 160
replay = 1.0
"""


def run_demo(folder: Path, cycles: int | None, seed: int) -> int:
    """Make the folder if it is new, run until it holds `cycles` outermost cycles, and print the table."""
    console = Console(highlight=False)
    folder = folder.resolve()
    began = time.monotonic()
    make_folder(folder, seed, console)
    places = read_places(folder / CONFIG_NAME)
    settings = load_settings(places.config)
    progress = Progress(console)
    with progress:
        works = wire(settings, places, on_row=progress.row, on_progress=progress.job)
        with works:
            Service(works, configure_logs("quiet"), until=cycles or DEMO_CYCLES).run()
            if works.flags.stop.is_set():
                console.print(f"stopped; run `kaizend demo --dir {shown(folder)}` again to continue")
                return 0
            table = table_of(works)
    console.print(table.rendered())
    for remark in table.remarks():
        console.print(remark, soft_wrap=True)
    console.print(f"\n{time.monotonic() - began:.0f} seconds this time. Next:")
    for words, purpose in (
        ("log -n 30", "what was tried and why it was kept or not"),
        (f"show {table.release or 1}", "the evidence behind the last release"),
        ("lineage", "where the stable model comes from"),
        ("verify", "chain, signatures, bytes and every decision, recomputed"),
        ('rollback --reason "trying it"', "the model that was stable before"),
    ):
        console.print(f"  {f'{program()} {words} -c {shown(folder)}'.ljust(56)}  {purpose}", soft_wrap=True)
    return 0


def program() -> str:
    """The command as it was called, so that what is printed can be pasted."""
    called = Path(sys.argv[0])
    return str(shown(called.absolute())) if called.name == "kaizend" else "kaizend"


def shown(folder: Path) -> Path:
    """The folder as a person in the current one would name it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def make_folder(folder: Path, seed: int, console: Console) -> None:
    """Models, data and the two files, each made once. Raises UserError for a folder with something else in it."""
    config = folder / CONFIG_NAME
    if config.is_file():
        return
    own = {"models", "models.partial", BOUNDS_NAME, f"{CONFIG_NAME}.partial"}
    if folder.exists() and any(entry.name not in own for entry in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no {CONFIG_NAME}: give another folder with --dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        make_models(folder, seed, console)
        (folder / BOUNDS_NAME).write_text(bounds_text())
        partial = folder / f"{CONFIG_NAME}.partial"
        partial.write_text(CONFIG_TOML.format(seed=seed))
        partial.rename(config)
    except OSError as error:
        raise UserError(f"cannot make the demo in {folder}: {error.strerror}") from error


def bounds_text() -> str:
    """The default bounds, but for what a demo of minutes needs otherwise."""
    text = DEFAULT_TOML
    for default, demo in (
        ("dwell_seconds = 60.0", "dwell_seconds = 0.0"),
        ("cycles_between_nominations = 1", "cycles_between_nominations = 6"),
        ("min_disk_free_gib = 5.0", "min_disk_free_gib = 0.5"),
        ("releases_per_day = 24", "releases_per_day = 1000"),
    ):
        assert default in text, default
        text = text.replace(default, demo)
    return text


def make_models(folder: Path, seed: int, console: Console) -> None:
    """Train base and experts in a process of its own, and show how far it is."""
    models, partial = folder / "models", folder / "models.partial"
    if models.is_dir():
        return
    shutil.rmtree(partial, ignore_errors=True)
    command = [sys.executable, "-m", "loops.work.pretrain", str(partial), "--seed", str(seed), "--threads", "1"]
    with console.status("training a base model and two experts from nothing") as status:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            status.update(f"training from nothing: {line.strip()}")
        complaint = process.stderr.read().strip().splitlines()
        if process.wait() != 0:
            reason = complaint[-1] if complaint else "no reason given"
            raise UserError(f"the demo's models could not be trained: {reason}")
    partial.rename(models)
    console.print(f"trained {', '.join(MODELS)} in {models}")


class Progress:
    """Live progress on a terminal: closed rows scroll by, the last line says what is being done now."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, refresh_per_second=8, transient=True)
        self.where = ""

    def __enter__(self) -> Progress:
        self.live.__enter__()
        self._say("starting the workers and sealing the vault")
        return self

    def __exit__(self, *raised: object) -> None:
        self.live.stop()

    def row(self, row: Row) -> None:
        if row.event == Event.OPENED:
            self.where = f"{row.loop} {row.id}"
            return
        self.console.print(Text(row_in_words(row), style=STYLES.get(row.verdict or "", "")), soft_wrap=True)

    def job(self, kind: str, done: float, note: str) -> None:
        self._say(f"{self.where}  {kind} {100 * done:3.0f} %  {note}")

    def _say(self, text: str) -> None:
        self.live.update(Text(text, style="dim"))


STYLES = {"PROMOTED": "green", "REJECTED": "dim", "REFUSED": "yellow", "CRASHED": "red", "TIMED_OUT": "red"}
