"""The reading commands: status, log, show, diff, lineage. They open the database read-only and import next to nothing.

What a row looks like in words is in `daemon.words`. Invariant: nothing here writes, and nothing here waits for the
daemon longer than a moment.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from daemon.control import NotRunning, ask
from daemon.data_seen import data_in_words, data_seen
from daemon.places import Places, find_config, read_places, read_toml
from daemon.provenance import ancestry, data_given
from daemon.words import change_in_words, differences, model_name, row_in_words, story
from safety.pending import begins_watch, given_up, under_watch, waiting
from state.errors import StateError, UserError
from state.reading import Reading
from state.records import Cycle, Event, JsonObject, LoopName, Row, Verdict

SHOWN = tuple(str(event) for event in Event if event is not Event.OPENED)
FOLLOW_SECONDS = 0.5
STATUS_SECONDS = 2.0
RECENT, MOST_ENDS = 8, 100_000
MOST_SEGMENTS, LINEAGE_ROWS = 1000, 20_000      # a lineage is drawn from the rows near the one that is named
LONGEST_ID = 12                 # digits of a row's id; a longer number can only be a digest
RUNNING, DEGRADED, PAUSED, NOT_RUNNING = 0, 1, 2, 3


def places_of(config: Path | None) -> Places:
    return read_places(find_config(config))


def out(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def status_report(config: Path | None, as_json: bool) -> int:
    """What is in force and what is going on. Returns the exit code that says how the daemon is."""
    places = places_of(config)
    try:
        answer = ask(places.socket, {"command": "status"}, STATUS_SECONDS)
    except NotRunning:
        answer = {"state": "not running"}
    except UserError as error:
        answer = {"state": f"degraded: {error}"}
    counts: JsonObject = {"cycles": {}, "releases": {}, "rows": 0}
    channels: JsonObject = {}
    in_flight: list[Cycle] = []
    held: Row | None = None
    watched: Row | None = None
    unwatched: list[str] = []
    try:
        if places.database.is_file():                   # before the first start there is none
            with Reading(places.database) as reading:
                counts, channels, in_flight = reading.counts(), reading.channels(), reading.open_cycles()
                held, watched, unwatched = nomination_waiting(reading), _watched(reading), _unwatched(reading, channels)
    except StateError as error:                         # exit 2 would say that it is paused
        answer["state"] = f"degraded: {error}"
    cycles = _nested(in_flight)
    body: JsonObject = {
        "state": answer["state"],
        "working": channels.get("working"),
        "stable": channels.get("stable"),
        "cycle": cycles[0] if cycles else None,
        "cycles": cycles,
        "waiting": held and {"row": held.id, "k": held.evidence.get("k"), "model": held.result, "reason": held.reason},
        "watch": watched and {"row": watched.id, "model": watched.result},
        "jobs": answer.get("jobs", []),
        "counts": counts["cycles"],
        "releases": counts["releases"],
        "rows": counts["rows"],
        "budgets_left": answer.get("budgets_left", {}),
        "warnings": [*unwatched, *_warnings(places)],
    }
    if as_json:
        out(body)
    else:
        sys.stdout.write(_status_in_words(places, body))
    return _status_code(body["state"])


def nomination_waiting(reading: Reading) -> Row | None:
    """The nomination that waits for the operator: only the last that passed can."""
    passed = reading.rows(limit=1, events=[str(Event.PASSED)])
    return waiting(passed, reading.rows(limit=MOST_ENDS, after=passed[0].id, events=[str(Event.RELEASE)])) \
        if passed else None


def _watched(reading: Reading) -> Row | None:
    """The release that is under watch: one of the last ones."""
    releases = reading.rows(limit=RECENT, verdict=str(Verdict.PROMOTED), events=[str(Event.RELEASE)])
    ends = [str(Event.WATCHED), str(Event.ROLLBACK)]
    return under_watch(releases, reading.rows(limit=MOST_ENDS, after=releases[0].id, events=ends)) if releases else None


def _unwatched(reading: Reading, channels: JsonObject) -> list[str]:
    """That stable was released and its watch given up, where it is so."""
    release = reading.row(channels["stable"]["row"]) if "stable" in channels else None
    if release is None or not begins_watch(release):
        return []
    end = given_up(release, reading.rows(limit=MOST_ENDS, after=release.id, events=[str(Event.WATCHED)]))
    return [f"stable is not watched: {end.reason} (row {end.id})"] if end else []


def _warnings(places: Places) -> list[str]:
    """What is past a warning level. A bounds file that cannot be read is not this command's to tell."""
    try:
        if not read_toml(places.bounds).get("warn"):        # nothing heavier is imported where there is no level
            return []
        from daemon.standing import readings_now
        from safety.bounds import load_bounds

        bounds = load_bounds(places.bounds)
        return bounds.warnings(readings_now(places, bounds))
    except UserError:
        return []


def _nested(cycles: Sequence[Cycle]) -> list[JsonObject]:
    """The outermost of the open cycles, the oldest first, each with those open inside it."""
    around = {cycle.id: cycle.parent for cycle in cycles}

    def root(id: int) -> int:
        parent = around.get(id)
        return id if parent is None else root(parent)

    return [
        {
            "id": cycle.id, "loop": cycle.loop, "change": cycle.candidate.change,
            "inside": [
                {"id": inner.id, "loop": inner.loop} for inner in cycles
                if inner.id != cycle.id and root(inner.id) == cycle.id
            ],
        }
        for cycle in cycles if cycle.parent is None
    ]


def _status_code(state: str) -> int:
    for word, code in (("running", RUNNING), ("draining", RUNNING), ("paused", PAUSED), ("not running", NOT_RUNNING)):
        if state.startswith(word):
            return code
    return DEGRADED


def _status_in_words(places: Places, body: JsonObject) -> str:
    lines = [f"kaizend  {body['state']}", f"state    {places.state}"]
    for channel in ("stable", "working"):
        pointer = body[channel]
        lines.append(f"{channel:<8} " + (f"{pointer['digest'][:12]} since row {pointer['row']}" if pointer else "none"))
    if body["waiting"]:
        row, model = body["waiting"]["row"], model_name(body["waiting"]["model"])
        lines.append(f"waiting  {model}: `kaizend approve {row} --reason ...`, or reject")
    if body["watch"]:
        lines.append(f"watch    the release of row {body['watch']['row']}, {model_name(body['watch']['model'])}")
    for cycle in body["cycles"]:
        inside = "".join(f" > {inner['loop']} {inner['id']}" for inner in cycle["inside"])
        lines.append(f"cycle    {cycle['loop']} {cycle['id']}: {change_in_words(cycle['change'])}{inside}")
    lines += [f"job      {job['kind']} for {job['seconds']:.0f} s" for job in body["jobs"]]
    for loop, verdicts in body["counts"].items():
        lines.append(f"{loop:<13}" + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
    if body["releases"]:
        lines.append("releases     " + ", ".join(f"{count} {verdict}" for verdict, count in body["releases"].items()))
    lines += [f"left today   {name}: {left:g}" for name, left in body["budgets_left"].items()]
    lines += [f"warning      {line}" for line in body["warnings"]]
    return "\n".join(lines) + "\n"


def log_report(
    config: Path | None, count: int, loop: str | None, verdict: str | None, since: str | None, follow: bool,
    oneline: bool, everything: bool, as_json: bool,
) -> None:
    """Rows that fit, the newest last; with `follow` the ones to come as well."""
    places = places_of(config)
    wanted: dict[str, Any] = {
        "loop": _one_of("--loop", loop, LoopName), "verdict": _one_of("--verdict", verdict, Verdict),
        "since": since and moment(since, datetime.now(UTC)),
        "events": () if everything else SHOWN,
    }
    if loop or verdict:
        wanted["events"] = () if everything or verdict else (str(Event.CLOSED), str(Event.ALARM))
    with Reading(places.database) as reading:
        rows = reading.rows(limit=count, **wanted)
        _print_rows(rows, oneline, as_json)
        last = rows[-1].id if rows else reading.head()[0]
        while follow:
            sys.stdout.flush()
            time.sleep(FOLLOW_SECONDS)
            rows = reading.rows(limit=1000, after=last, **{**wanted, "since": None})
            _print_rows(rows, oneline, as_json)
            last = rows[-1].id if rows else last


def _print_rows(rows: list[Row], oneline: bool, as_json: bool) -> None:
    for row in rows:
        if as_json:
            out(row.to_json())
        elif oneline:
            sys.stdout.write(f"{row.id} {row.verdict or row.event} {row.reason}\n")
        else:
            sys.stdout.write(row_in_words(row, colour=sys.stdout.isatty()) + "\n")


def _one_of(option: str, value: str | None, choices: Any) -> str | None:
    if value is None:
        return None
    found = [str(choice) for choice in choices if str(choice).lower() == value.lower()]
    if not found:
        raise UserError(f"{option} {value}: one of {', '.join(str(choice) for choice in choices)}")
    return found[0]


def moment(text: str, now: datetime) -> str:
    """A UTC time as rows carry it, from an ISO time (local where it has no zone) or an age such as 90s, 30m, 2h, 7d."""
    age = re.fullmatch(r"(\d+)([smhd])", text)
    if age:
        seconds = int(age[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[age[2]]
        then = now - timedelta(seconds=min(seconds, 3_000_000_000))
    else:
        try:
            then = datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise UserError(f"--since {text}: a time like 2026-01-31T08:00, or an age like 30m, 2h or 7d") from error
    return then.isoformat(timespec="microseconds").removesuffix("+00:00")


def show_report(config: Path | None, what: str, as_json: bool) -> None:
    """One row, and where it belongs to a cycle, the cycle's whole story; of a model, the data that it saw."""
    with Reading(places_of(config).database) as reading:
        if not (what.isdecimal() and len(what) < LONGEST_ID):
            model = digest_named(reading, what)
            _show_model(model, _data_of(reading, model), as_json)
            return
        row = reading.row(int(what))
        if row is None:
            raise UserError(f"there is no row {what}: the last one is {reading.head()[0]}")
        cycle_id = row.cycle or (row.id if row.event == Event.OPENED else None)
        rows = reading.cycle_rows(cycle_id) if cycle_id else []
        opening = reading.row(cycle_id) if cycle_id else None
        rows = [opening, *(r for r in rows if r.id != cycle_id)] if opening else [row]
        inside = [_closing_row(reading, child.id) for child in reading.children(cycle_id)] if cycle_id else []
        data = _data_of(reading, row.result) if row.result else None
        body: JsonObject = {
            **row.to_json(), "story": [r.to_json() for r in rows if r], "children": inside, "data": data,
        }
    if as_json:
        out(body)
    else:
        sys.stdout.write(story(row, [r for r in rows if r], inside) + (_data_in_words(data) if data else ""))


def _show_model(model: str, data: JsonObject, as_json: bool) -> None:
    if as_json:
        out({"model": model, "data": data})
    else:
        sys.stdout.write(f"model {model}\n{_data_in_words(data)}")


def _data_of(reading: Reading, model: str) -> JsonObject:
    return data_seen(ancestry(reading, model), data_given(reading))


def _data_in_words(data: JsonObject) -> str:
    lines = data_in_words(data) or ["none: it is as it was given, or made of such models"]
    return "\ndata that the model saw, with what it was made from\n" + "".join(f"  {line}\n" for line in lines)


def plot_report(config: Path | None, what: str, file: Path, as_json: bool) -> None:
    """Draw the segments of the lineage that a reward cycle, or the last one inside a pipeline cycle, belongs to."""
    from daemon.plot import drawn

    with Reading(places_of(config).database) as reading:
        chosen = _segment_named(reading, what)
        since = max(0, chosen.id - LINEAGE_ROWS)
        near = reading.rows(limit=MOST_SEGMENTS, loop=LoopName.REWARD, events=[str(Event.CLOSED)], after=since)
    lineage = chosen.change["lineage"]
    segments = [row for row in near if isinstance(row.change, dict) and row.change.get("lineage") == lineage]
    try:
        file.write_text(drawn(segments, chosen), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error
    if as_json:
        out({"plot": str(file), "lineage": lineage, "segments": [row.id for row in segments]})
    else:
        sys.stdout.write(f"wrote {file}: {len(segments)} segments of lineage {lineage}\n")


def _segment_named(reading: Reading, what: str) -> Row:
    """The closing row of the reward cycle that a row is of, or of the last one inside its pipeline cycle."""
    if not (what.isdecimal() and len(what) < LONGEST_ID):
        raise UserError(f"a picture is drawn of a row or a cycle, and {what} is none")
    row = _row_named(reading, what)
    cycle = row.cycle or row.id
    around = [cycle, *(child.id for child in reading.children(cycle))]
    closed = [each for id in around for each in reading.cycle_rows(id) if each.event == Event.CLOSED]
    segments = [each for each in closed if isinstance(each.change, dict) and "lineage" in each.change]
    if not segments:
        raise UserError(f"row {what} belongs to no reward cycle that is closed, so there is nothing to draw")
    return segments[-1]


def _closing_row(reading: Reading, cycle: int) -> JsonObject:
    rows = [row for row in reading.cycle_rows(cycle) if row.event == Event.CLOSED]
    opening = reading.row(cycle)
    found = rows[-1] if rows else opening
    return found.to_json() if found else {"id": cycle}


def diff_report(config: Path | None, a: str, b: str, as_json: bool) -> None:
    """Two rows by their change and evidence, or two models by their configuration and tensors."""
    places = places_of(config)
    with Reading(places.database) as reading:
        if all(name.isdecimal() and len(name) < LONGEST_ID for name in (a, b)):
            first, second = (_row_named(reading, name) for name in (a, b))
            left, right = ({"change": r.change, "evidence": r.evidence, "verdict": r.verdict, "base": r.base,
                            "result": r.result} for r in (first, second))
        else:
            left, right = (_model_facts(places, reading, name) for name in (a, b))
    found = differences(left, right)
    if as_json:
        out({"a": a, "b": b, "differences": [{"key": key, "a": x, "b": y} for key, x, y in found]})
        return
    for key, x, y in found:
        sys.stdout.write(f"{key}\n  - {x}\n  + {y}\n")
    if not found:
        sys.stdout.write("no difference\n")


def _row_named(reading: Reading, name: str) -> Row:
    row = reading.row(int(name))
    if row is None:
        raise UserError(f"there is no row {name}")
    return row


def digest_named(reading: Reading, name: str) -> str:
    """The model that a row id, a channel or a (shortened) digest names. Raises UserError."""
    channels = reading.channels()
    if name in channels:
        return str(channels[name]["digest"])
    if name.isdecimal() and len(name) < LONGEST_ID:
        row = _row_named(reading, name)
        if not row.result:
            raise UserError(f"no model came out of row {name}")
        return row.result
    artefact = reading.artefact(name) if re.fullmatch(r"[0-9a-f]{6,64}", name) else None
    if artefact is None:
        raise UserError(f"{name}: not a row, a channel or a known digest")
    return str(artefact["digest"])


def artefact_path(places: Places, digest: str) -> Path:
    return places.state / "artifacts" / digest[:2] / digest


def _model_facts(places: Places, reading: Reading, name: str) -> JsonObject:
    """Configuration, facts, recipe and tensors of a model: a folder, or what `digest_named` finds."""
    from daemon.tensors import tensor_digests
    from safety.headers import HeaderError, facts_of, read_json

    folder = Path(name)
    if not folder.is_dir() or name in reading.channels():
        folder = artefact_path(places, digest_named(reading, name))
    if not (folder / "config.json").is_file():
        raise UserError(f"{name}: not a model folder")
    recipe = folder / "kaizend.json"
    try:
        return {
            "config": read_json(folder / "config.json"), "facts": facts_of(folder),
            "recipe": read_json(recipe) if recipe.is_file() else {}, "tensors": tensor_digests(folder),
        }
    except HeaderError as error:
        raise UserError(str(error)) from error


def lineage_report(config: Path | None, name: str | None, dot: bool) -> None:
    """The ancestors of a model, each with the change that made it, back to the operator's own."""
    with Reading(places_of(config).database) as reading:
        digest = digest_named(reading, name or "stable")
        found = ancestry(reading, digest)
    if dot:
        lines = [f'  "{model_name(parent)}" -> "{model_name(descent.model)}" [label={json.dumps(descent.made)}];'
                 for descent in found for parent in descent.parents]
        sys.stdout.write("digraph lineage {\n  rankdir=BT;\n  node [shape=box];\n" + "\n".join(lines) + "\n}\n")
        return
    for descent in found:
        sys.stdout.write(f"{model_name(descent.model)}  {descent.made}\n")
        for parent in descent.parents:
            sys.stdout.write(f"    from {model_name(parent)}\n")
