"""What an operator does: pause, resume, drain, roll back, look at and loosen bounds, export a model.

A command goes to the running daemon by its socket; where none is running, what can be done without it is done here,
under the same lock. No torch, no network.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from daemon.control import NotRunning, ask
from daemon.places import Places
from daemon.reports import ancestry, artefact_path, digest_named, out, places_of
from daemon.words import model_name
from safety.bounds import headroom, load_bounds, loosened
from safety.preflight import licence_of
from state.errors import UserError
from state.reading import Reading
from state.records import Actor, Event, JsonObject


def ask_daemon(config: Path | None, request: JsonObject) -> str:
    """Send one request to the running daemon; its state in words. Raises UserError when none is running."""
    return str(_answer(places_of(config), request)["state"])


def _answer(places: Places, request: JsonObject) -> JsonObject:
    answer = ask(places.socket, request)
    if "error" in answer:
        raise UserError(str(answer["error"]))
    return answer


def roll_back(config: Path | None, reason: str, to: int | None, working: bool, as_json: bool) -> None:
    """Move stable back, through the daemon or, where none is running, directly."""
    places = places_of(config)
    request = {"command": "rollback", "reason": reason, "to": to, "working": working}
    try:
        row = _answer(places, request)
    except NotRunning:
        row = _roll_back_alone(places, reason, to, working)
    if as_json:
        out(row)
        return
    again, latched = row["result"][:12], row["base"][:12]
    print_line(f"stable is {again} again; {latched} is latched and cannot return (row {row['id']})")


def _roll_back_alone(places: Places, reason: str, to: int | None, working: bool) -> JsonObject:
    from daemon.lock import Lock
    from safety.rollback import rollback
    from state.database import Database
    from state.registry import Registry
    from state.signed import signed_ledger

    if not places.database.is_file():
        raise UserError(f"there is no ledger at {places.database}: nothing to roll back")
    with Lock(places.state / "lock"):
        database = Database(places.database)
        try:
            database.migrate()
            registry = Registry(places.state, database)
            registry.reconcile()
            ledger = signed_ledger(database, registry, places.signing_key, places.public_key, places.heads_file)
            row = rollback(ledger, registry, to, reason, Actor.OPERATOR, also_working=working)
        finally:
            database.close()
    return row.to_json()


def show_bounds(config: Path | None, as_json: bool) -> None:
    """Every bound with its limit and what it does."""
    bounds = load_bounds(places_of(config).bounds)
    rows = headroom(bounds)
    if as_json:
        out({name: {"limit": value, "action": action} for name, value, action in rows})
        return
    width = max(len(name) for name, _, _ in rows)
    for name, value, action in rows:
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        print_line(f"{name:<{width}}  {shown:<24}  {action}")


def check_bounds(config: Path | None, file: Path | None) -> None:
    """Read a bounds file, and say what it would loosen compared with the bounds in the ledger."""
    places = places_of(config)
    fresh = load_bounds(file or places.bounds)
    looser: list[str] = []
    if places.database.is_file():
        from safety.bounds import Bounds

        with Reading(places.database) as reading:
            rows = reading.rows(limit=1, events=[str(Event.BOUNDS)])
        if rows:
            looser = loosened(Bounds.from_json(rows[-1].change["after"]), fresh)
    print_line(f"{file or places.bounds}: valid")
    for line in looser:
        print_line(f"looser than the ledger's last bounds: {line}")
    if looser:
        print_line("the daemon starts with it only after `kaizend bounds loosen --reason ...`")


def loosen_bounds(config: Path | None, reason: str) -> None:
    """Record the bounds of the file as the ones in force, with what became looser and why."""
    from daemon.bounds_in_force import record_bounds, recorded_bounds
    from daemon.lock import Lock
    from state.database import Database
    from state.registry import Registry
    from state.signed import signed_ledger

    if not reason.strip():
        raise UserError("loosening bounds needs a reason")
    places = places_of(config)
    fresh = load_bounds(places.bounds)
    if not places.database.is_file():
        raise UserError(f"there is no ledger at {places.database}: the first start takes the bounds as they are")
    with Lock(places.state / "lock"):
        database = Database(places.database)
        try:
            database.migrate()
            ledger = signed_ledger(
                database, Registry(places.state, database), places.signing_key, places.public_key, places.heads_file
            )
            recorded = recorded_bounds(ledger)
            if recorded == fresh:
                print_line("the bounds are the ones in the ledger: nothing to record")
                return
            looser = loosened(recorded, fresh) if recorded else []
            record_bounds(ledger, fresh, reason, Actor.OPERATOR)
        finally:
            database.close()
    for line in looser or ["nothing became looser; recorded all the same"]:
        print_line(line)


def export_model(config: Path | None, what: str, folder: Path) -> str:
    """Copy a model out, with a card that says where it comes from, and its ledger rows."""
    places = places_of(config)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder: give a new one")
    with Reading(places.database) as reading:
        digest = digest_named(reading, what)
        source = artefact_path(places, digest)
        if not (source / "config.json").is_file():
            raise UserError(f"{what}: {digest[:12]} is not a model that is kept")
        edges = ancestry(reading, digest)
        releases = [row for row in reading.rows_with_result(digest) if row.event == Event.RELEASE]
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial, copy_function=shutil.copyfile)
        partial.chmod(0o755)
        licences = sorted({licence_of(artefact_path(places, model)) for model, _, parents in edges if not parents})
        (partial / "README.md").write_text(_card(digest, edges, [row.to_json() for row in releases], licences))
        (partial / "lineage.json").write_text(json.dumps(
            [{"model": model, "made": label, "from": parents} for model, label, parents in edges], indent=2
        ))
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    return f"{digest[:12]} is in {folder}"


def _card(digest: str, edges: list[tuple[str, str, list[str]]], releases: list[JsonObject], licences: list[str]) -> str:
    """The model card: front matter with the licences, how the model came to be, and the evidence of its releases."""
    lines = ["---", f"license: {' and '.join(licences) or 'unknown'}", "tags: [kaizend]", "---", "",
             f"# Model {digest[:12]}", "", f"Digest `{digest}`.", "", "## How it came to be", ""]
    lines += [f"- `{model_name(model)}` {label}" + (f", from {', '.join(f'`{model_name(p)}`' for p in parents)}"
              if parents else "") for model, label, parents in edges]
    lines += ["", "## Evidence", ""]
    lines += [f"- row {row['id']}, {row['time']}: {row['verdict']}, {row['reason']}" for row in releases] or [
        "It was never released as stable."
    ]
    return "\n".join(lines) + "\n"


def print_line(text: str) -> None:
    sys.stdout.write(text + "\n")
