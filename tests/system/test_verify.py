"""`kaizend verify` finds what was changed behind the daemon's back, and says which row, file or link it is."""

import hashlib
import json
import os
import sqlite3
from pathlib import Path

import pytest
from watching import asked, channels, kaizend, rows

from state.chain import hash_row


def tampered(life: Path, *statements: str) -> None:
    """Run SQL on the ledger as an intruder would: without the triggers."""
    with sqlite3.connect(life / "var" / "kaizend.db") as connection:
        triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def problems(life: Path) -> str:
    done = kaizend(life, "verify")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_finished_run_verifies_with_everything_in_it(finished: Path) -> None:
    body = asked(finished, "verify")
    assert (body["holds"], body["problems"]) == (True, [])
    assert (body["rows"], body["head"]) == (rows(finished)[-1].id, rows(finished)[-1].hash)
    assert body["decisions"] >= 2
    assert body["artefacts"] > 10
    assert kaizend(finished, "verify").returncode == 0


def test_the_run_shows_every_kind_of_row(finished: Path) -> None:
    kinds = {(row.loop, row.verdict) for row in rows(finished) if row.event == "closed"}
    assert {("architecture", "PROMOTED"), ("architecture", "REJECTED")} <= kinds
    assert {"pipeline", "reward"} <= {loop for loop, _ in kinds}
    assert {"PROMOTED", "REJECTED"} <= {row.verdict for row in rows(finished) if row.event == "release"}


@pytest.mark.parametrize(("column", "value"), [
    ("reason", "'better than it was'"), ("verdict", "'PROMOTED'"), ("evidence", "'{}'"), ("evidence", "'torn'"),
    ("time", "'2020-01-01T00:00:00.000000Z'"),
])
def test_a_changed_row_is_found_and_named(life: Path, column: str, value: str) -> None:
    release = next(row for row in rows(life) if row.event == "release" and row.verdict == "REJECTED")
    tampered(life, f"UPDATE ledger SET {column} = {value} WHERE id = {release.id}")
    assert f"PROBLEM  row {release.id} was changed" in problems(life)


def test_a_torn_row_can_still_be_read(life: Path) -> None:
    tampered(life, "UPDATE ledger SET change = 'torn', evidence = 'torn', cost = 'torn' WHERE id = 6")
    for command in (("log", "-n", "100"), ("log", "--json"), ("show", "6"), ("lineage",), ("diff", "6", "10")):
        done = kaizend(life, *command)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_deleted_row_is_found_and_named(life: Path) -> None:
    tampered(life, "DELETE FROM ledger WHERE id = 5")
    assert "PROBLEM  row 5 is missing" in problems(life)


def test_rows_cut_off_at_the_end_are_found(life: Path) -> None:
    last = rows(life)[-1].id
    tampered(life, f"DELETE FROM ledger WHERE id = {last}")
    assert f"the ledger ends at row {last - 1}, but {last} rows were written" in problems(life)


def test_reordered_rows_are_found_and_named(life: Path) -> None:
    tampered(
        life, "UPDATE ledger SET id = -1 WHERE id = 4", "UPDATE ledger SET id = 4 WHERE id = 6",
        "UPDATE ledger SET id = 6 WHERE id = -1",
    )
    found = problems(life)
    assert "row 4 was changed" in found
    assert "row 6 was changed" in found


def test_a_forged_release_whose_hashes_were_made_to_fit_does_not_follow_from_its_scores(life: Path) -> None:
    release = next(row for row in rows(life) if row.event == "release" and row.verdict == "REJECTED")
    statements, prev = [], rows(life)[release.id - 2].hash
    for row in rows(life)[release.id - 1:]:
        body = {**row.to_json(), "prev": prev}
        if row.id == release.id:
            body |= {"verdict": "PROMOTED", "evidence": {**row.evidence, "decision": "release", "e": 1e6}}
        prev = hash_row(body)
        evidence = json.dumps(body["evidence"], ensure_ascii=False).replace("'", "''")
        statements.append(
            f"UPDATE ledger SET verdict = {repr(body['verdict']) if body['verdict'] else 'NULL'}, "
            f"evidence = '{evidence}', prev = '{body['prev']}', hash = '{prev}' WHERE id = {row.id}"
        )
    tampered(life, *statements)
    assert f"PROBLEM  row {release.id}: decision: the ledger says release" in problems(life)


def test_a_channel_that_nobody_moved_is_found(life: Path) -> None:
    tampered(life, f"UPDATE channels SET digest = '{rows(life)[0].result}' WHERE name = 'stable'")
    assert "stable points at" in problems(life)


def test_a_latch_that_was_taken_away_is_found(life: Path) -> None:
    before = channels(life)["stable"]
    assert kaizend(life, "rollback", "--reason", "x").returncode == 0
    tampered(life, "DELETE FROM latches")
    assert f"PROBLEM  {before[:12]} was latched, but its latch is gone" in problems(life)


def flip(file: Path) -> None:
    mode = file.stat().st_mode
    file.chmod(0o600)
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)
    file.chmod(mode)


def test_a_flipped_bit_in_a_model_is_found_and_named(life: Path) -> None:
    weights = (life / "var" / "stable").resolve() / "model.safetensors"
    flip(weights)
    assert f"{weights.relative_to(life.resolve())} was changed" in problems(life)


def test_a_flipped_bit_in_the_vault_is_found_and_named(life: Path) -> None:
    file = next((life / "var" / "vault").rglob("*.jsonl"))
    flip(file)
    assert f"{file.name} was changed" in problems(life)


def test_bytes_changed_together_with_their_manifest_are_found(life: Path) -> None:
    digest = channels(life)["stable"]
    flip((life / "var" / "stable").resolve() / "config.json")
    forged = json.dumps({
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (life / "var" / "stable").resolve().iterdir()
    })
    tampered(life, f"UPDATE artefacts SET files = '{forged}' WHERE digest = '{digest}'")
    assert f"artefact {digest[:12]}: its list of files was changed" in problems(life)


def test_a_missing_and_an_added_file_are_found_and_named(life: Path) -> None:
    stable = (life / "var" / "stable").resolve()
    (stable / "config.json").unlink()
    (stable / "more.txt").write_text("more")
    found = problems(life)
    assert "config.json is missing" in found
    assert "more.txt was added" in found


def test_a_moved_link_is_found_and_named(life: Path) -> None:
    link = life / "var" / "stable"
    link.unlink()
    os.symlink("/tmp", link)
    assert f"the link {link} does not point at {channels(life)['stable'][:12]}" in problems(life)
