"""Signed heads by the command line: a rewritten ledger is found, in a state folder and in an export without one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from miniature import environment
from signatures import JsonRow, rechained, rewrite, run_sql
from watching import asked, complaint, kaizend, rows, serving, stop, until

from state.heads import is_signed, read_heads
from state.reading import Reading

OLD = Path(__file__).resolve().parents[1] / "old" / "state-0001.tar.gz"
HEAVY = {"torch", "transformers", "numpy", "sqlalchemy", "optuna", "structlog"}


def problems(folder: Path, *words: str) -> str:
    done = kaizend(folder, "verify", *words)
    assert (done.returncode, done.stderr) == (1, ""), done.stdout + done.stderr
    return done.stdout


def holds(folder: Path, *words: str) -> bool:
    return kaizend(folder, "verify", *words).returncode == 0


def database(folder: Path) -> Path:
    return folder / "var" / "kaizend.db"


def first_release(rows: list[JsonRow]) -> JsonRow:
    return next(row for row in rows if row["event"] == "release")


# ---------------------------------------------------------------- a state folder


def test_every_row_of_its_kind_is_signed_with_the_key_that_the_genesis_names(finished: Path) -> None:
    body = asked(finished, "verify")
    written = rows(finished)
    with Reading(database(finished)) as reading:
        signed = [head.row for head in reading.heads()]
    assert signed == [row.id for row in written if is_signed(row.event, row.parent)]
    assert (body["heads"], body["signed"]) == (len(signed), signed[-1])
    assert next(row for row in written if row.event == "genesis").evidence["signing_key"] == body["key"]
    assert (finished / "var" / "signing.key").stat().st_mode & 0o777 == 0o600
    assert f"signed up to row {signed[-1]} with key {body['key'][:12]}" in kaizend(finished, "verify").stdout


@pytest.mark.parametrize("change", [
    lambda rows: first_release(rows).update(reason="better than it was"),
    lambda rows: first_release(rows).update(verdict="REFUSED"),
    lambda rows: rows[0]["change"]["after"].update(gate={}),
    lambda rows: rows[3].update(time="2020-01-01T00:00:00.000000Z"),
    lambda rows: rows[4].update(cost={"seconds": 1}),
    lambda rows: rows.pop(4) and None,
    lambda rows: [*rows[:3], rows[4], rows[3], *rows[5:]],
    lambda rows: [*rows[:5], rows[4], *rows[5:]],
], ids=["reason", "verdict", "bounds", "time", "cost", "deleted", "reordered", "inserted"])
def test_a_rewritten_database_is_found_although_its_chain_was_computed_anew(
    life: Path, change: Callable[[list[JsonRow]], Any]
) -> None:
    rewrite(database(life), change)
    found = problems(life)
    assert "is not the one that was signed: the ledger was rewritten at it or before it" in found
    assert "was changed: its contents do not match" not in found
    assert "is running" not in complaint(kaizend(life, "run", "--cycles", "1"), 78)


def test_a_changed_head_is_found_and_named(life: Path) -> None:
    run_sql(database(life), "UPDATE heads SET time = '2020-01-01T00:00:00.000000Z' WHERE row = 2")
    assert "PROBLEM  the signature of row 2 is not one of key" in problems(life)


def test_an_intruders_own_key_is_not_the_state_folders(life: Path, tmp_path: Path) -> None:
    forge_everything(life, tmp_path)
    assert "PROBLEM  the heads are signed with key" in problems(life)


def forge_everything(life: Path, tmp_path: Path) -> Path:
    """Rewrite the ledger and sign all of it with another key. Returns the folder of that key."""
    from state.signing import make_key

    own = tmp_path / "intruder"
    own.mkdir()
    key = make_key(own / "signing.key")

    def change(rows: list[JsonRow]) -> None:
        first_release(rows)["reason"] = "much better"
        next(row for row in rows if row["event"] == "genesis")["evidence"]["signing_key"] = key.public

    rewrite(database(life), change)
    statements = ["DELETE FROM heads"]
    for row in rows(life):
        if is_signed(row.event, row.parent):
            head = key.head(row.id, row.hash, row.time)
            statements.append(f"INSERT INTO heads VALUES ({head.row}, '{head.hash}', '{head.time}', '{head.key}', "
                              f"'{head.signature}')")
    run_sql(database(life), *statements)
    return own


def test_who_rewrites_the_whole_state_folder_is_found_by_what_was_copied_away(life: Path, tmp_path: Path) -> None:
    from state.signing import read_key, write_public

    kept = tmp_path / "signing.pub"
    shutil.copy(life / "var" / "signing.pub", kept)
    with Reading(database(life)) as reading:
        heads = reading.heads()
    journal = tmp_path / "heads.jsonl"
    journal.write_text("".join(
        json.dumps({"event": "signed", "level": "info", **head.to_json()}) + "\n" for head in heads
    ))
    assert holds(life, "--key", str(kept), "--heads", str(journal))
    own = forge_everything(life, tmp_path)
    for name in ("signing.key", "signing.pub"):
        (life / "var" / name).unlink()
    shutil.copy(own / "signing.key", life / "var" / "signing.key")
    key = read_key(own / "signing.key")
    assert key is not None
    write_public(life / "var" / "signing.pub", key.public)
    assert holds(life)                                                   # it knows nothing better
    assert f"but {kept} holds" in problems(life, "--key", str(kept))
    assert f"is not the one that {journal} knows" in problems(life, "--heads", str(journal))


def test_rows_cut_off_to_an_earlier_head_are_found_by_a_later_one_kept_elsewhere(life: Path, tmp_path: Path) -> None:
    with Reading(database(life)) as reading:
        heads = reading.heads()
    elsewhere = tmp_path / "heads.jsonl"
    elsewhere.write_text(json.dumps(heads[-1].to_json()) + "\n")
    last = heads[3].row
    run_sql(database(life), f"DELETE FROM heads WHERE row > {last}")
    rewrite(database(life), lambda rows: rows[:last])
    assert "missing: a head" not in problems(life)                       # links and artefacts may show it, heads do not
    assert f"rows {last + 1} to {heads[-1].row} are missing: {elsewhere} holds a head" in problems(
        life, "--heads", str(elsewhere))


def test_a_file_named_in_the_configuration_gets_every_head_and_the_journal_too(life: Path) -> None:
    config = life / "kaizend.toml"
    config.write_text(config.read_text().replace("[service]", '[service]\nheads_file = "elsewhere.jsonl"'))
    done = kaizend(life, "run", "--cycles", "1")
    assert done.returncode == 0, done.stderr
    with Reading(database(life)) as reading:
        heads = reading.heads()
    assert read_heads(life / "elsewhere.jsonl") == heads
    told = [line for line in map(json.loads, done.stderr.splitlines()) if line["event"] == "signed"]
    assert [line["row"] for line in told] == [head.row for head in heads if head.row >= told[0]["row"]]
    journal = life / "journal"
    journal.write_text(done.stderr)
    assert holds(life, "--heads", str(journal))
    rewrite(database(life), lambda rows: rows[2].update(reason="x"))
    assert f"is not the one that {life / 'elsewhere.jsonl'} knows" in problems(life)


def test_a_stop_inside_a_cycle_signs_what_there_is_of_it(life: Path) -> None:
    with serving(life) as process:
        until(lambda: any(row.event == "opened" and row.parent for row in rows(life)[-3:]))
        assert stop(process, 10) == 0
    assert asked(life, "verify")["signed"] == rows(life)[-1].id


def test_a_rollback_and_loosened_bounds_are_signed(life: Path) -> None:
    assert kaizend(life, "rollback", "--reason", "x").returncode == 0
    bounds = life / "bounds.toml"
    bounds.write_text(bounds.read_text().replace("alpha = 0.3", "alpha = 0.31"))
    assert kaizend(life, "bounds", "loosen", "--reason", "x").returncode == 0
    assert asked(life, "verify")["signed"] == rows(life)[-1].id
    assert rows(life)[-1].event == "bounds"


def test_a_key_kept_outside_the_state_folder_is_used_and_stays_out_of_backups(fresh: Path, tmp_path: Path) -> None:
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", "own.key"], cwd=fresh, check=True)
    (fresh / "own.key").chmod(0o600)
    config = fresh / "kaizend.toml"
    config.write_text(config.read_text().replace("[service]", '[service]\nsigning_key = "own.key"'))
    assert kaizend(fresh, "run", "--cycles", "1").returncode == 0
    assert asked(fresh, "verify")["holds"]
    assert kaizend(fresh, "backup", str(tmp_path / "b.tar")).returncode == 0
    with tarfile.open(tmp_path / "b.tar") as tar:
        assert {"signing.pub"} == {name for name in tar.getnames() if name.startswith("signing")}
    assert (tmp_path / "b.tar").stat().st_mode & 0o777 == 0o600
    (fresh / "own.key").chmod(0o644)
    assert "chmod 600" in complaint(kaizend(fresh, "run", "--cycles", "1"), 78)


def test_a_state_folder_of_the_first_revision_is_rolled_back_signed_and_verified(tmp_path: Path) -> None:
    with tarfile.open(OLD) as tar:
        tar.extractall(tmp_path, filter="tar")
    (tmp_path / "kaizend.toml").write_text("[models]\n")
    assert "start the daemon once" in complaint(kaizend(tmp_path, "verify"))
    assert kaizend(tmp_path, "log").returncode == 0
    assert kaizend(tmp_path, "rollback", "--to", "1", "--reason", "x").returncode == 0
    assert asked(tmp_path, "verify")["holds"]
    assert "heads are signed from here on" in kaizend(tmp_path, "log").stdout


def test_a_backup_of_the_first_revision_is_restored_where_a_key_is_at_hand(life: Path, tmp_path: Path) -> None:
    backup = tmp_path / "old.tar"
    with tarfile.open(OLD) as old, tarfile.open(backup, "w") as tar:
        for member in old.getmembers():
            inner = member.name.removeprefix("var/")
            if inner.startswith(("artifacts/", "vault/", "kaizend.db")):
                member, body = member.replace(name=inner), old.extractfile(member) if member.isfile() else None
                tar.addfile(member, body)
    config = life / "kaizend.toml"
    config.write_text(config.read_text().replace("[service]", '[service]\nsigning_key = "own.key"'))
    (life / "var" / "signing.key").rename(life / "own.key")
    shutil.rmtree(life / "var")
    done = kaizend(life, "restore", str(backup))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "12 rows, not signed" in done.stdout


def test_verify_imports_nothing_heavy_and_reading_commands_no_cryptography(life: Path) -> None:
    for words, signs in ((("verify",), True), (("log",), False), (("status",), False), (("show", "2"), False)):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "daemon", *words], cwd=life, capture_output=True, text=True,
            env=environment(PYTHONPATH=str(Path(__file__).resolve().parents[2])), check=False,
        )
        imported = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert not imported & HEAVY
        assert ("cryptography" in imported) == signs, words


@pytest.mark.parametrize(("words", "said"), [
    (("--key", "nowhere.pub"), "there is no public key at nowhere.pub"),
    (("--key", "bounds.toml"), "bounds.toml is not an Ed25519 public key"),
    (("--heads", "nowhere"), "cannot read nowhere"), (("--heads", "bounds.toml"), "holds no signed head"),
    (("nowhere.jsonl",), "cannot read nowhere.jsonl"), (("bounds.toml",), "is not a ledger that"),
    (("models",), "cannot read models"),
])
def test_what_cannot_be_verified_against_is_said_in_one_line(life: Path, words: tuple[str, ...], said: str) -> None:
    assert said in complaint(kaizend(life, "verify", *words))


# ---------------------------------------------------------------- an export, without a state folder


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "ledger.jsonl"
    done = kaizend(finished, "export", "--ledger", str(file))
    assert done.returncode == 0, done.stderr
    return file


@pytest.fixture
def alone(exported: Path, finished: Path, tmp_path: Path) -> Path:
    """A folder with nothing but the export and the public key."""
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(exported, folder / "ledger.jsonl")
    shutil.copy(finished / "var" / "signing.pub", folder)
    return folder


Lines = list[dict[str, Any]]


def edit(folder: Path, change: Callable[[Lines], Lines | None]) -> None:
    file = folder / "ledger.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines = change(lines) or lines
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit_rows(folder: Path, change: Callable[[list[JsonRow]], list[JsonRow] | None], *, chain: bool = False) -> None:
    def all_lines(lines: Lines) -> Lines:
        rows = [line["row"] for line in lines if "row" in line]
        rows = change(rows) or rows
        rows = rechained(rows) if chain else rows
        first = [line for line in lines if "row" not in line and "scores" not in line]
        return [*first, *({"row": row} for row in rows), *(line for line in lines if "scores" in line)]
    edit(folder, all_lines)


def test_an_export_verifies_alone_and_says_with_which_key(alone: Path, finished: Path) -> None:
    body = asked(finished, "verify")
    for words in ((), ("--key", "signing.pub")):
        found = json.loads(kaizend(alone, "verify", "ledger.jsonl", *words, "--json").stdout)
        assert found["holds"]
        assert {name: found[name] for name in ("rows", "head", "heads", "signed", "key", "decisions")} == {
            name: body[name] for name in ("rows", "head", "heads", "signed", "key", "decisions")
        }


def swap(rows: list[JsonRow]) -> list[JsonRow]:
    return [*rows[:3], rows[4], rows[3], *rows[5:]]


@pytest.mark.parametrize(("change", "said"), [
    (lambda rows: first_release(rows).update(reason="x"), "was changed: its contents do not match its hash"),
    (lambda rows: rows.pop(4) and None, "PROBLEM  row 5 is missing"),
    (swap, "is out of order"),
    (lambda rows: rows[:-1], "are missing: a head of row"),
    (lambda rows: rows[4].pop("cost") and None, "is none of an exported ledger"),
    (lambda rows: rows[4].update(id="5"), "is none of an exported ledger"),
])
def test_a_changed_deleted_or_reordered_row_of_an_export_is_found(
    alone: Path, change: Callable[[list[JsonRow]], Any], said: str
) -> None:
    edit_rows(alone, change)
    assert said in problems(alone, "ledger.jsonl")


@pytest.mark.parametrize("change", [
    lambda rows: first_release(rows).update(reason="x"), lambda rows: rows.pop(4) and None, swap,
    lambda rows: first_release(rows).update(evidence="torn"),
    lambda rows: next(row for row in rows if row["event"] == "nominated").update(evidence=[]),
])
def test_an_export_whose_chain_was_computed_anew_is_found(
    alone: Path, change: Callable[[list[JsonRow]], Any]
) -> None:
    edit_rows(alone, change, chain=True)
    assert "is not the one that was signed" in problems(alone, "ledger.jsonl", "--key", "signing.pub")


def flip_scores(lines: Lines) -> None:
    line = next(line for line in lines if "scores" in line)
    name, text = next(iter(line["files"].items()))
    scores = json.loads(text)
    scores["targets"]["new"] = [1.0 - value for value in scores["targets"]["new"]]
    line["files"][name] = json.dumps(scores)


def test_changed_and_missing_scores_of_an_export_are_found(alone: Path) -> None:
    edit(alone, flip_scores)
    found = problems(alone, "ledger.jsonl")
    assert "were changed: their text does not give that digest" in found
    assert "its scores give" in found
    edit(alone, lambda lines: [line for line in lines if "scores" not in line])
    assert "its per-item scores are gone" in problems(alone, "ledger.jsonl")


def test_an_export_signed_by_another_or_not_at_all_is_found_by_the_key_kept_elsewhere(
    life: Path, alone: Path, tmp_path: Path
) -> None:
    forge_everything(life, tmp_path)
    assert kaizend(life, "export", "--ledger", str(alone / "forged.jsonl")).returncode == 0
    assert "but signing.pub holds" in problems(alone, "forged.jsonl", "--key", "signing.pub")
    edit(alone, lambda lines: [{**lines[0], "key": None}, *(line for line in lines[1:] if "head" not in line)])
    assert "row 2 is not signed, and every row of its kind is" in problems(alone, "ledger.jsonl")


def test_an_export_that_was_cut_short_is_found(alone: Path) -> None:
    file = alone / "ledger.jsonl"
    text = file.read_bytes()
    for length in (len(text) - 100, len(text) // 2):
        file.write_bytes(text[:length])
        problems(alone, "ledger.jsonl")


def test_an_export_is_written_while_the_daemon_runs_and_never_over_a_file(life: Path) -> None:
    with serving(life) as process:
        for number in range(5):
            assert kaizend(life, "export", "--ledger", f"{number}.jsonl").returncode == 0
            assert holds(life, f"{number}.jsonl")
            assert holds(life)
        process.kill()
    assert "never overwrites" in complaint(kaizend(life, "export", "--ledger", "0.jsonl"))
    for words in (("export",), ("export", "stable", "out", "--ledger", "x.jsonl"), ("export", "a", "b", "c")):
        done = kaizend(life, *words)
        assert done.returncode == 2 and "Traceback" not in done.stderr


