"""The command line: one function a command, thin, and nothing heavy imported before it is needed.

Names and JSON keys are a contract. `--json` prints one object (or one object a line for lists) on stdout; words for
people then go to stderr. Exit 2 and one clear line on bad input.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A daemon that makes a language model better by itself, within bounds, without fooling its owner.",
)
bounds_app = typer.Typer(no_args_is_help=True, help="The operator's limits: show, check, loosen.")
app.add_typer(bounds_app, name="bounds")

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="kaizend.toml, or the folder it is in.", show_default=False)
]
MOST_ID = 10**12
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object (a line each for lists) on stdout.")]


def say(text: str) -> None:
    """Words for people, on stdout."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def example(text: str) -> str:
    return f"Example: {text}"


@app.command(epilog=example("kaizend demo --dir demo --cycles 80"))
def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Where to make it; run again to continue.")] = Path("demo"),
    cycles: Annotated[int | None, typer.Option(min=1, help="Outermost cycles in all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of models, tasks and search.")] = 0,
) -> None:
    """The whole thing in miniature, from nothing: train small models, run all three loops, judge, release."""
    from daemon.demo import run_demo

    raise typer.Exit(run_demo(folder, cycles, seed))


@app.command(epilog=example("kaizend init /etc/kaizend"))
def init(folder: Annotated[Path, typer.Argument(help="Folder for the two files.")] = Path()) -> None:
    """Write kaizend.toml and bounds.toml, commented, to start from."""
    from daemon.starting_point import write_starting_point

    for path in write_starting_point(folder):
        say(f"wrote {path}")


@app.command(epilog=example("kaizend check --json"))
def check(config: Config = None, as_json: AsJson = False) -> None:
    """Is everything ready? Configuration, bounds, models, tokenizers, licences, data, disk, device. No weights read."""
    from daemon.checkup import run_checkup

    raise typer.Exit(run_checkup(config, as_json))


@app.command(epilog=example("kaizend run --cycles 100"))
def run(
    config: Config = None,
    cycles: Annotated[int | None, typer.Option(min=1, help="Stop after so many outermost cycles.")] = None,
) -> None:
    """The daemon in the foreground; this is what systemd starts."""
    from daemon.foreground import run_in_foreground

    raise typer.Exit(run_in_foreground(config, cycles))


@app.command(epilog=example("kaizend status --json"))
def status(config: Config = None, as_json: AsJson = False) -> None:
    """How the daemon is. Exit 0 running well, 1 degraded, 2 paused, 3 not running."""
    from daemon.reports import status_report

    raise typer.Exit(status_report(config, as_json))


@app.command(epilog=example("kaizend log -n 50 --loop architecture --verdict PROMOTED --since 2h"))
def log(
    config: Config = None,
    count: Annotated[int, typer.Option("-n", min=1, max=MOST_ID, help="How many rows, the newest last.")] = 20,
    loop: Annotated[str | None, typer.Option(help="architecture, pipeline or reward.")] = None,
    verdict: Annotated[str | None, typer.Option(help="PROMOTED, REJECTED, REFUSED, ...")] = None,
    since: Annotated[str | None, typer.Option(help="A time (2026-01-31, 2026-01-31T08:00) or 30m, 2h, 7d.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing rows as they come.")] = False,
    oneline: Annotated[bool, typer.Option("--oneline", help="Id, verdict and reason only.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Opening rows too.")] = False,
    as_json: AsJson = False,
) -> None:
    """The modifications: what was tried, on what, what came out and why."""
    from daemon.reports import log_report

    log_report(config, count, loop, verdict, since, follow, oneline, everything, as_json)


@app.command(epilog=example("kaizend show 42"))
def show(
    what: Annotated[str, typer.Argument(metavar="ID", help="A row or a cycle, or a model: a digest or a channel.")],
    config: Config = None,
    as_json: AsJson = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw the segments of a reward lineage instead.")
    ] = None,
) -> None:
    """The whole story of one row: change, bounds, evidence, children, cost, and the data that its model saw.

    Or a picture of its reward lineage.
    """
    from daemon.reports import plot_report, show_report

    if plot is not None:
        plot_report(config, what, plot, as_json)
        return
    show_report(config, what, as_json)


@app.command(epilog=example("kaizend diff working stable"))
def diff(
    a: Annotated[str, typer.Argument(help="A row id, a digest, working, stable or a model folder.")],
    b: Annotated[str, typer.Argument(help="The other one.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Two models or two rows: what differs in genome, recipe, shaping, evidence and tensors."""
    from daemon.reports import diff_report

    diff_report(config, a, b, as_json)


@app.command(epilog=example("kaizend lineage --dot | dot -Tsvg > lineage.svg"))
def lineage(
    model: Annotated[str | None, typer.Argument(metavar="ID", help="A row, a digest or a channel.")] = None,
    dot: Annotated[bool, typer.Option("--dot", help="Graphviz text.")] = False,
    config: Config = None,
) -> None:
    """Where a model comes from: parents and changes back to the first ones. Default: stable."""
    from daemon.reports import lineage_report

    lineage_report(config, model, dot)


@app.command(epilog=example("kaizend pause"))
def pause(config: Config = None) -> None:
    """Start no further cycle until `kaizend resume`."""
    from daemon.operate import ask_daemon

    say(ask_daemon(config, {"command": "pause"}))


@app.command(epilog=example("kaizend resume"))
def resume(config: Config = None) -> None:
    """Go on after a pause, also after one that the breaker made."""
    from daemon.operate import ask_daemon

    say(ask_daemon(config, {"command": "resume"}))


@app.command(epilog=example("kaizend drain"))
def drain(config: Config = None) -> None:
    """Finish the cycle in flight, then stop."""
    from daemon.operate import ask_daemon

    say(ask_daemon(config, {"command": "drain"}))


@app.command(epilog=example('kaizend rollback --reason "answers got longer"'))
def rollback(
    reason: Annotated[str, typer.Option("--reason", help="Why, in words; it goes into the ledger.")],
    to: Annotated[
        int | None, typer.Option("--to", metavar="ID", min=0, max=MOST_ID, help="Row of the release to go back to.")
    ] = None,
    working: Annotated[bool, typer.Option("--working", help="Move working back as well.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Put the previous stable model back in force and latch the present one, so that it cannot return."""
    from daemon.operate import roll_back

    roll_back(config, reason, to, working, as_json)


Waiting = Annotated[int, typer.Argument(metavar="ID", min=0, max=MOST_ID, help="The row that waits for approval.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, in words; it goes into the ledger.")]


@app.command(epilog=example('kaizend approve 42 --reason "read the evidence, tried it"'))
def approve(row: Waiting, reason: Reason, config: Config = None, as_json: AsJson = False) -> None:
    """Release what passed the gate and waits. Exit 1 where it came too late: something moved or was tightened."""
    from daemon.operate import settle_nomination

    raise typer.Exit(settle_nomination(config, row, reason, True, as_json))


@app.command(epilog=example('kaizend reject 42 --reason "answers got too terse"'))
def reject(row: Waiting, reason: Reason, config: Config = None, as_json: AsJson = False) -> None:
    """Do not release what passed the gate and waits."""
    from daemon.operate import settle_nomination

    raise typer.Exit(settle_nomination(config, row, reason, False, as_json))


@bounds_app.command("show", epilog=example("kaizend bounds show"))
def bounds_show(config: Config = None, as_json: AsJson = False) -> None:
    """Every bound: its limit, what it is now, what is left, its warning level and what it does when it is met."""
    from daemon.showing import show_bounds

    show_bounds(config, as_json)


@bounds_app.command("check", epilog=example("kaizend bounds check new-bounds.toml"))
def bounds_check(
    file: Annotated[Path | None, typer.Argument(help="A bounds file; default: the one in force.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Is a bounds file valid, what would it change, and what of what is in force would it refuse?"""
    from daemon.showing import check_bounds

    check_bounds(config, file, as_json)


@bounds_app.command("loosen", epilog=example('kaizend bounds loosen --reason "bigger models from now on"'))
def bounds_loosen(
    reason: Annotated[str, typer.Option("--reason", help="Why, in words; it goes into the ledger.")],
    config: Config = None,
) -> None:
    """Record that bounds.toml is looser than before, so that the daemon starts with it."""
    from daemon.operate import loosen_bounds

    loosen_bounds(config, reason)


@app.command(epilog=example("kaizend verify --key signing.pub --heads heads.jsonl"))
def verify(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="An exported ledger; default: the state folder.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="The public key, from where you keep it.")
    ] = None,
    heads: Annotated[
        Path | None, typer.Option("--heads", metavar="FILE", help="Signed heads kept elsewhere: the journal's lines.")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Check chain, signatures and the bytes of every artefact, and recompute every decision of the gate."""
    from daemon.audit import run_audit

    raise typer.Exit(run_audit(config, as_json, file, key, heads))


@app.command(epilog=example("kaizend score ./some-model --task maths2 --split guard"))
def score(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    task: Annotated[str | None, typer.Option(help="One task; default: all.")] = None,
    split: Annotated[str, typer.Option(help="search (fresh items) or guard.")] = "search",
    count: Annotated[int, typer.Option("-n", min=1, help="Items a task.")] = 500,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Score any model folder on the configured tasks."""
    from daemon.scoring import score_model

    score_model(config, model, task, split, count, as_json)


@app.command(epilog=example("kaizend export stable ./my-model"))
def export(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID] DIR", help="A row, a digest or a channel (stable); a new folder."),
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option("--ledger", metavar="FILE", help="The whole ledger instead, for `kaizend verify`.")
    ] = None,
    config: Config = None,
) -> None:
    """A model folder with card, lineage and bill of materials. Or the ledger, signed, without the models."""
    from daemon.exporting import export_model
    from daemon.ledger_file import write_ledger

    if ledger is not None and not words:
        say(write_ledger(config, ledger))
        return
    if ledger is not None or words is None or not 1 <= len(words) <= 2:
        raise typer.BadParameter("give a model and a folder, or only a folder, or --ledger and a file")
    say(export_model(config, words[0] if words[1:] else "stable", Path(words[-1])))


@app.command(epilog=example("kaizend gc --apply"))
def gc(
    apply: Annotated[bool, typer.Option("--apply", help="Really delete.")] = False, config: Config = None
) -> None:
    """What nothing needs any more: rejected models and checkpoints; and why the rest stays. A dry run unless told."""
    from daemon.garbage import collect_garbage

    collect_garbage(config, apply)


@app.command(epilog=example("kaizend backup kaizend-backup.tar --drill"))
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    drill: Annotated[bool, typer.Option("--drill", help="Then try whether it can be restored and verifies.")] = False,
    config: Config = None,
) -> None:
    """Ledger, artefacts, configuration and bounds in one file; also while the daemon runs."""
    from daemon.keeping import write_backup
    from daemon.restoring import try_restore

    write_backup(config, file)
    if drill:
        raise typer.Exit(try_restore(config, file))


@app.command(epilog=example("kaizend restore kaizend-backup.tar"))
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `kaizend backup` wrote.")],
    drill: Annotated[
        bool, typer.Option("--drill", help="Only try it, in a folder beside FILE; exit 1 if it does not verify.")
    ] = False,
    config: Config = None,
) -> None:
    """Put a backup into an empty state folder and verify it."""
    from daemon.restoring import restore_backup, try_restore

    if drill:
        raise typer.Exit(try_restore(config, file))
    restore_backup(config, file)
