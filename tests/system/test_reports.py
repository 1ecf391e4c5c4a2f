"""What the reading commands say about a finished run: the keys of the contract, the filters, and the ends of pipes."""

import json
import signal
from pathlib import Path

import pytest
from miniature import start
from watching import asked, channels, complaint, kaizend, rows, until

ROW_KEYS = {
    "id", "time", "cycle", "parent", "loop", "change", "verdict", "reason", "base", "result", "evidence", "cost",
    "actor", "prev", "hash",
}
STATUS_KEYS = {"state", "working", "stable", "cycle", "counts", "budgets_left"}
COMMANDS = (
    "demo", "init", "check", "run", "status", "log", "show", "diff", "lineage", "pause", "resume", "drain", "rollback",
    "bounds show", "bounds check", "bounds loosen", "verify", "score", "export", "gc", "backup", "restore",
)


def logged(folder: Path, *words: str) -> list[dict]:
    done = kaizend(folder, "log", "--json", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_log_rows_are_the_ledgers_with_the_keys_of_the_contract(finished: Path) -> None:
    found = logged(finished, "--all", "-n", "1000")
    assert found == [row.to_json() for row in rows(finished)]
    assert all(row.keys() >= ROW_KEYS for row in found)


def test_log_leaves_openings_out_and_shows_the_newest_last(finished: Path) -> None:
    shown = [row.id for row in rows(finished) if row.event != "opened"]
    assert [row["id"] for row in logged(finished, "-n", "5")] == shown[-5:]


def test_log_filters_by_loop_verdict_and_time(finished: Path) -> None:
    everything = rows(finished)
    assert {row["loop"] for row in logged(finished, "--loop", "reward")} == {"reward"}
    promoted = [row.id for row in everything if row.loop == "architecture" and row.verdict == "PROMOTED"]
    assert [row["id"] for row in logged(finished, "--loop", "architecture", "--verdict", "promoted")] == promoted
    since = everything[9].time
    late = [row.id for row in everything if row.id >= 10 and row.event != "opened"]
    assert [row["id"] for row in logged(finished, "-n", "100", "--since", since)] == late
    assert logged(finished, "-n", "100", "--since", "7d")[0]["id"] == 1
    assert logged(finished, "--since", "2100-01-01") == []


def test_one_line_has_id_verdict_and_reason(finished: Path) -> None:
    last = rows(finished)[-1]
    assert kaizend(finished, "log", "-n", "1", "--oneline").stdout == f"{last.id} {last.verdict} {last.reason}\n"


@pytest.mark.parametrize(("words", "said"), [
    (("log", "-n", "9" * 22), "Invalid value for '-n'"),
    (("log", "--loop", "house"), "one of architecture, pipeline, reward"), (("log", "--since", "soon"), "--since soon"),
    (("log", "--verdict", "GOOD"), "one of PROMOTED"), (("show", "4711"), "there is no row 4711"),
    (("show", "x"), "not a row, a channel or a known digest"), (("show", "9" * 30), "not a row, a channel"),
    (("diff", "2", "9" * 30), "no model came out of row 2"),
    (("lineage", "abcdef123"), "not a row, a channel or a known digest"), (("log", "--bogus"), "No such option"),
    (("nonsense",), "No such command"), (("export", "stable", "models"), "not an empty folder"),
    (("log", "--config", "nowhere.toml"), "nowhere.toml does not exist"), (("pause",), "kaizend is not running"),
    (("score", "nowhere"), "there is no such model folder"), (("score", "models/base", "--task", "x"), "no such task"),
    (("score", "models/base", "--split", "vault"), "the vault is sealed"),
])
def test_bad_usage_is_one_clear_line(finished: Path, words: tuple[str, ...], said: str) -> None:
    assert said in complaint(kaizend(finished, *words))


def test_show_tells_the_whole_story_of_a_cycle(finished: Path) -> None:
    trained = next(row for row in rows(finished) if row.event == "closed" and row.change.get("kind") == "keep")
    body = asked(finished, "show", str(trained.id))
    assert [row["id"] for row in body["story"]] == [trained.cycle, trained.id]
    assert {child["loop"] for child in body["children"]} == {"pipeline"}
    assert body.keys() >= ROW_KEYS
    words = kaizend(finished, "show", str(trained.id)).stdout
    assert trained.reason in words
    assert trained.hash in words


def test_show_tells_which_data_the_stable_model_saw_and_how_much(finished: Path) -> None:
    body = asked(finished, "show", "stable")
    assert body["model"] == channels(finished)["stable"]
    given = rows(finished)[0].change["data"]
    assert all(entry["given"] == entry["digest"] == given[entry["source"]] for entry in body["data"]["sources"])
    trained = [row for row in rows(finished) if row.event == "closed" and row.evidence.get("data")]
    assert trained
    for row in trained:
        data = asked(finished, "show", str(row.id))["data"]
        seen = {entry["source"]: entry for entry in data["sources"]} if row.result else row.evidence["data"]
        for name, used in row.evidence["data"].items():
            assert seen[name]["tokens"] >= used["tokens"] > 0 < used["rows"] <= seen[name]["rows"]


def test_diff_compares_rows_and_models(finished: Path) -> None:
    between = {found["key"] for found in asked(finished, "diff", "6", "10")["differences"]}
    assert "change.weights" in between
    models = {found["key"] for found in asked(finished, "diff", "stable", "1")["differences"]}
    assert "tensors.lm_head.weight" in models
    start_folder = asked(finished, "diff", "1", "models/expert-maths")
    assert start_folder["differences"] == []


def test_lineage_leads_back_to_the_operators_models(finished: Path) -> None:
    stable, genesis = channels(finished)["stable"], rows(finished)[0].change
    words = kaizend(finished, "lineage").stdout
    assert words.startswith(f"{stable[:12]}  row ")
    given = zip((genesis["base"], *genesis["parents"]), ("base", "expert-maths", "expert-language"), strict=True)
    for model, name in given:
        assert f"{model[:12]}  as it was given ({name})\n" in words
    assert kaizend(finished, "lineage", "--dot").stdout.startswith("digraph lineage {")


def test_status_of_what_is_not_running_exits_3(finished: Path) -> None:
    done = kaizend(finished, "status", "--json")
    body = json.loads(done.stdout)
    assert done.returncode == 3
    assert body.keys() >= STATUS_KEYS
    assert (body["state"], body["cycle"]) == ("not running", None)
    assert {name: body[name]["digest"] for name in ("stable", "working")} == channels(finished)
    assert body["counts"]["architecture"]["PROMOTED"] >= 1
    assert kaizend(finished, "status").returncode == 3


def test_status_before_the_first_start_is_not_running_and_of_a_broken_ledger_degraded(fresh: Path) -> None:
    assert kaizend(fresh, "status").returncode == 3
    (fresh / "var").mkdir()
    (fresh / "var" / "kaizend.db").write_text("this is not a database, and long enough to look like a damaged one")
    done = kaizend(fresh, "status")
    assert done.returncode == 1
    assert "is not a database of kaizend" in done.stdout


def test_follow_prints_rows_as_they_come_and_ends_quietly(life: Path) -> None:
    with start(life, "log", "--follow", "--oneline", "-n", "1") as follower:
        assert follower.stdout is not None and follower.stderr is not None
        assert follower.stdout.readline().startswith(f"{rows(life)[-1].id} ")
        kaizend(life, "rollback", "--reason", "to see it")
        assert "ROLLED_BACK to see it" in follower.stdout.readline()
        follower.send_signal(signal.SIGINT)
        until(lambda: follower.poll() is not None)
        assert follower.returncode == 130
        assert follower.stderr.read() == ""


def test_a_reader_that_goes_away_leaves_no_traceback(finished: Path) -> None:
    with start(finished, "log", "--all", "--json", "-n", "1000") as log:
        assert log.stdout is not None and log.stderr is not None
        log.stdout.close()
        until(lambda: log.poll() is not None)
        assert log.stderr.read() == ""



@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    from daemon.cli import app, bounds_app

    family, _, name = command.rpartition(" ")
    found = [
        each for each in (bounds_app if family else app).registered_commands
        if (each.name or (each.callback.__name__ if each.callback else "")) in (name, f"{family}_{name}")
    ]
    assert len(found) == 1
    assert str(found[0].epilog).startswith(f"Example: kaizend {command}")
    assert found[0].callback is not None and found[0].callback.__doc__


def test_help_is_printed(finished: Path) -> None:
    done = kaizend(finished, "rollback", "--help")
    assert done.returncode == 0
    assert "Example: kaizend rollback --reason" in done.stdout
