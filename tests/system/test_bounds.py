"""`kaizend bounds`: where every bound stands, what another file would do, warnings, and what stops releases."""

from pathlib import Path

import pytest
from court import FACTS
from watching import asked, channels, complaint, in_flight, kaizend, rows, serving, state_of, stop, until

from safety.bounds import Bounds
from safety.limits import limits_of
from safety.preflight import preflight
from state.database import Database
from state.ledger import Ledger
from state.records import Entry, Event, Verdict
from state.registry import Registry

NAMES = [name for name, _, _ in limits_of(Bounds())]


def add(folder: Path, text: str) -> None:
    file = folder / "bounds.toml"
    file.write_text(file.read_text() + text)


def edited(folder: Path, old: str, new: str) -> Path:
    """Another bounds file beside the one in force."""
    text = (folder / "bounds.toml").read_text()
    assert old in text
    file = folder / "other.toml"
    file.write_text(text.replace(old, new))
    return file


def test_show_gives_limit_reading_headroom_and_action_for_every_bound(life: Path) -> None:
    found = asked(life, "bounds", "show")
    assert list(found) == NAMES
    keys = {"limit", "now", "headroom", "warning", "past_warning", "action"}
    assert all(row.keys() == keys and row["action"] for row in found.values())
    assert not any(row["past_warning"] for row in found.values())
    release = [row for row in rows(life) if row.event == "release"][-1]
    for name, now in (
        ("drift.stable.kl_mean", release.evidence["drift_stable"]["kl_mean"]),
        ("behaviour.calibration", release.evidence["calibration"]["error"]),
        ("serving.latency_ratio", release.evidence["serving"]["latency_ratio"]),
        ("model.max_hidden", 64), ("model.architectures", ["llama"]), ("supply.licences", ["apache-2.0"]),
    ):
        assert found[name]["now"] == now, name
    for name in ("model.max_parameters", "resources.seconds_per_day", "rate.drift_per_week"):
        assert found[name]["headroom"] == pytest.approx(found[name]["limit"] - found[name]["now"]), name
    assert found["resources.min_disk_free_gib"]["headroom"] > 0
    begun = rows(life)[0].change
    assert set(found["supply.parents"]["now"]) == {begun["start"], begun["base"], *begun["parents"]}
    lines = kaizend(life, "bounds", "show").stdout.splitlines()
    assert len(lines) == len(NAMES) + 1


def test_show_works_before_the_first_start(fresh: Path) -> None:
    found = asked(fresh, "bounds", "show")
    assert list(found) == NAMES
    assert found["drift.stable.kl_mean"]["now"] is None
    assert found["resources.min_disk_free_gib"]["headroom"] > 0


def test_a_default_life_has_all_it_needs_inside_every_default_bound(life: Path) -> None:
    """The defaults must not bite: nothing in a life under them is refused, and none of its readings is past a limit."""
    assert not [row for row in rows(life) if row.verdict == Verdict.REFUSED]
    for name, row in asked(life, "bounds", "show").items():
        left = row["headroom"]
        assert not isinstance(left, (int, float)) or left >= 0, (name, row)


def test_check_says_what_a_file_would_tighten_loosen_and_refuse(life: Path) -> None:
    file = edited(life, "margin = 0.2", "margin = 0.3")
    file.write_text(file.read_text().replace("latency_ratio = 100.0", "latency_ratio = 0.001") + """
[model]
max_hidden = 63
[search]
operators = ["linear"]
[drift.stable]
kl_mean = 1e-9
""")
    found = asked(life, "bounds", "check", str(file))
    assert found["looser"] == ["guards.margin: 0.2 -> 0.3"]
    assert not found["accepted"]
    assert [line.partition(":")[0] for line in found["tighter"]] == [
        "model.max_hidden", "search.operators", "drift.stable.kl_mean", "serving.latency_ratio",
    ]
    text = "\n".join(found["refuses"])
    for name in ("stable: model.max_hidden: 64", "drift.stable.kl_mean", "serving.latency_ratio"):
        assert name in text, name
    merges = [row for row in rows(life) if row.event == "closed" and row.change.get("kind") in ("merge", "keep")]
    assert found["refused"] == found["newly_refused"] == len(merges) > 0
    said = kaizend(life, "bounds", "check", str(file))
    assert said.returncode == 0
    assert "kaizend bounds loosen" in said.stdout
    assert f"would refuse {len(merges)} of the last {found['candidates']} candidates" in said.stdout


def test_check_of_a_file_that_only_tightens_says_that_it_is_accepted(life: Path) -> None:
    file = edited(life, "margin = 0.2", "margin = 0.1")
    found = asked(life, "bounds", "check", str(file))
    assert (found["accepted"], found["looser"], found["tighter"]) == (True, [], ["guards.margin: 0.2 -> 0.1"])
    assert "a reload or a start accepts it" in kaizend(life, "bounds", "check", str(file)).stdout


def test_check_says_what_would_pause_at_once(life: Path) -> None:
    file = edited(life, "min_disk_free_gib = 0.1", "min_disk_free_gib = 900000.0")
    assert "resources.min_disk_free_gib" in "\n".join(asked(life, "bounds", "check", str(file))["pauses"])


def test_a_warning_is_in_show_status_and_log_and_changes_nothing(life: Path) -> None:
    (life / "var" / "STOP").touch()
    add(life, "\n[warn]\nresources.min_disk_free_gib = 900000.0\nmodel.max_layers = 3\n")
    found = asked(life, "bounds", "show")
    assert found["model.max_layers"]["past_warning"]
    assert found["model.max_layers"]["warning"] == 3.0
    assert "PAST" in kaizend(life, "bounds", "show").stdout
    warnings = asked(life, "status")["warnings"]
    assert [line.partition(":")[0] for line in warnings] == ["resources.min_disk_free_gib", "model.max_layers"]
    assert "warning      model.max_layers: 4 is past" in kaizend(life, "status").stdout
    with serving(life) as process:
        assert state_of(life) == (2, "paused: breaker.stop_file: the file STOP is there")      # that and nothing else
        said = ""
        assert process.stderr is not None
        while said.count('"warned"') < 2:
            said += process.stderr.readline()
        assert stop(process, 10) == 0
    assert asked(life, "verify")["holds"]


def test_what_a_cycle_asks_past_a_level_stands_in_its_row(life: Path) -> None:
    add(life, "\n[warn]\nsearch.max_parents = 1\npipeline.max_steps = 1\nmodel.max_layers = 1\n")
    done = kaizend(life, "run", "--cycles", "1")
    assert done.returncode == 0, done.stderr
    new = [row for row in rows(life) if row.event == "closed"]
    lines = [line for row in new for line in row.evidence.get("warnings", [])]
    assert any(line.startswith(("search.max_parents: 2", "pipeline.max_steps")) for line in lines), lines
    assert '"warned"' in done.stderr


def test_a_first_start_with_a_model_that_is_not_named_is_refused_with_its_digest(fresh: Path, finished: Path) -> None:
    begun = rows(finished)[0].change
    known = [begun["start"], begun["base"]]
    other = next(parent for parent in begun["parents"] if parent not in known)
    add(fresh, f"\n[supply]\nparents = {known!r}\n".replace("'", '"'))
    said = complaint(kaizend(fresh, "run", "--cycles", "1"))
    assert "models/expert-language: supply.parents: " in said
    assert other in said
    assert channels(fresh) == {}


def test_a_kind_of_model_that_is_not_allowed_is_refused_before_anything_is_made(fresh: Path) -> None:
    add(fresh, '\n[model]\narchitectures = ["mistral"]\n')
    assert "model.architectures: llama is outside [mistral]" in complaint(kaizend(fresh, "run", "--cycles", "1"))
    assert not (fresh / "var").exists()


def test_a_release_refused_for_changed_code_pauses_until_the_operator_resumes(life: Path) -> None:
    database = Database(life / "var" / "kaizend.db")
    try:
        ledger = Ledger(database, Registry(life / "var", database))
        asked_row = list(ledger.rows(event=Event.NOMINATED))[-1]
        row = ledger.append(Entry(Event.NOMINATED, "nomination 9: working asks to become stable",
                                  base=asked_row.base, result=asked_row.result, evidence=asked_row.evidence))
        ledger.append(Entry(
            Event.RELEASE, "code.modules: safety has changed is outside as it was nominated", verdict=Verdict.REFUSED,
            base=row.base, result=row.result,
            evidence={"nomination": row.id, "refusal": {"bound": "code.modules", "value": "safety has changed"}},
        ))
    finally:
        database.close()
    with serving(life) as process:
        code, state = state_of(life)
        assert code == 2
        assert state.startswith("paused: releases have stopped: code.modules: safety has changed")
        assert kaizend(life, "resume").stdout == "running\n"
        acts = [row for row in rows(life) if row.event == "operator"]
        assert acts[-1].change == {"act": "resume"}
        assert "code.modules" in acts[-1].reason
        until(lambda: in_flight(life))
        stop(process, 20)


def test_facts_of_the_tests_are_those_that_the_headers_give(finished: Path) -> None:
    from safety.headers import facts_of

    folder = finished / "models" / "base"
    assert facts_of(folder).keys() | {"non_finite"} == FACTS.keys()
    assert preflight([folder], Bounds()) == []
