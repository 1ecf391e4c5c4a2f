"""A signed ledger: its key is made once, named in the ledger, and not exchanged in silence."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from signatures import check_heads, heads_of, rewrite, run_sql, signature_problems

from state.database import Database
from state.errors import ConfigurationError
from state.heads import Head, read_heads
from state.ledger import Ledger
from state.reading import Reading
from state.records import Budget, Candidate, Entry, Event, LoopName, Outcome, Row, Verdict
from state.registry import Registry
from state.signed import signed_ledger
from state.signing import read_key, read_public

ROOT = Path(__file__).resolve().parents[3]
OLD = ROOT / "tests" / "old" / "state-0001.tar.gz"


def opened(root: Path, told: list[Head] | None = None, missed: list[str] | None = None) -> Ledger:
    """The ledger of a folder, as every start opens it."""
    database = Database(root / "kaizend.db")
    database.migrate()
    return signed_ledger(
        database, Registry(root, database), root / "signing.key", root / "signing.pub", root / "heads.jsonl",
        on_head=([] if told is None else told).append, on_missed=([] if missed is None else missed).append,
    )


def closed(ledger: Ledger) -> None:
    ledger.database.close()


def act(ledger: Ledger, reason: str = "an act") -> Row:
    return ledger.append(Entry(Event.OPERATOR, reason))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder whose ledger has begun: genesis and one act, both signed."""
    ledger = opened(tmp_path)
    ledger.append(Entry(Event.GENESIS, "began"))
    act(ledger)
    closed(ledger)
    return tmp_path


def test_the_first_start_makes_a_key_only_its_owner_reads_and_the_genesis_names_it(root: Path) -> None:
    key = read_key(root / "signing.key")
    assert key is not None and key.public == read_public(root / "signing.pub")
    assert (root / "signing.key").stat().st_mode & 0o777 == 0o600
    with Reading(root / "kaizend.db") as reading:
        assert next(reading.every_row()).evidence == {"signing_key": key.public}
    check_heads(root)
    assert [head.row for head in heads_of(root)] == [1, 2]


def test_openssl_reads_the_keys_and_checks_a_head(root: Path) -> None:
    head = heads_of(root)[-1]
    (root / "message").write_text(f"kaizend head {head.row} {head.hash} {head.time}\n")
    (root / "signature").write_bytes(bytes.fromhex(head.signature))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "signing.pub", "-rawin", "-in", "message",
               "-sigfile", "signature"]
    assert subprocess.run(command, cwd=root, capture_output=True, check=False).returncode == 0


def test_a_key_of_the_operators_own_is_used(tmp_path: Path) -> None:
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", "signing.key"], cwd=tmp_path, check=True)
    (tmp_path / "signing.key").chmod(0o600)
    text = (tmp_path / "signing.key").read_bytes()
    act(opened(tmp_path))
    assert (tmp_path / "signing.key").read_bytes() == text
    check_heads(tmp_path)


def test_every_head_is_told_and_copied_and_a_start_tells_the_last_one_again(root: Path) -> None:
    told: list[Head] = []
    ledger = opened(root, told)
    act(ledger)
    assert [head.row for head in told] == [2, 3]
    assert read_heads(root / "heads.jsonl") == heads_of(root)


def test_what_lies_inside_a_cycle_is_covered_by_its_end_or_by_an_orderly_stop(root: Path) -> None:
    ledger = opened(root)
    outer, inner = (Candidate(loop, {}, "a", "a") for loop in (LoopName.ARCHITECTURE, LoopName.PIPELINE))
    cycle = ledger.open_cycle(None, 0, outer, {}, Budget(1, 1, 1))
    ledger.close_cycle(ledger.open_cycle(cycle.id, 0, inner, {}, Budget(1, 1, 1)), Outcome(Verdict.REJECTED, "no"), {})
    assert [head.row for head in heads_of(root)] == [1, 2]
    ledger.sign_last()
    ledger.sign_last()
    assert [head.row for head in heads_of(root)] == [1, 2, 5]
    ledger.close_cycle(cycle, Outcome(Verdict.REJECTED, "no"), {})
    ledger.sign_last()
    assert [head.row for head in heads_of(root)] == [1, 2, 5, 6]
    check_heads(root)


def test_the_program_opens_no_ledger_that_is_not_signed() -> None:
    sources = [path for package in ("daemon", "loops", "safety") for path in (ROOT / package).rglob("*.py")]
    assert sources and not [path for path in sources if re.search(r"\bLedger\(", path.read_text())]


def test_heads_cannot_be_changed_or_taken_away(root: Path) -> None:
    ledger = opened(root)
    for statement in ("UPDATE heads SET hash = 'x'", "DELETE FROM heads"):
        with pytest.raises(Exception, match="append-only"), ledger.database.transaction() as connection:
            connection.exec_driver_sql(statement)


def test_a_file_elsewhere_that_cannot_be_written_stops_a_start_but_no_row(root: Path) -> None:
    missed: list[str] = []
    ledger = opened(root, missed=missed)
    text = (root / "heads.jsonl").read_text()
    (root / "heads.jsonl").unlink()
    (root / "heads.jsonl").mkdir()
    act(ledger)
    assert len(missed) == 1 and "heads.jsonl" in missed[0]
    (root / "heads.jsonl").rmdir()
    (root / "heads.jsonl").write_text(text + '{"row": 3, "ha')              # cut short: ended, and written again
    act(ledger)
    check_heads(root)
    closed(ledger)
    (root / "heads.jsonl").unlink()
    (root / "heads.jsonl").mkdir()
    with pytest.raises(ConfigurationError, match=r"heads\.jsonl"):
        opened(root)


def test_a_new_file_elsewhere_gets_every_head(root: Path) -> None:
    (root / "heads.jsonl").unlink()
    opened(root)
    check_heads(root)


# ---------------------------------------------------------------- what a start refuses to sign


def refused(root: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        opened(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_ledger_that_was_rewritten_is_not_signed_anew(root: Path) -> None:
    rewrite(root / "kaizend.db", lambda rows: rows[1].update(reason="another act"))
    assert "does not hold row 2 as it was signed" in refused(root)


def test_a_ledger_that_was_rewritten_with_its_heads_taken_away_is_not_signed_anew(root: Path) -> None:
    rewrite(root / "kaizend.db", lambda rows: rows[1].update(reason="another act"))
    run_sql(root / "kaizend.db", "DELETE FROM heads WHERE row = 2")
    assert "by the head in " in refused(root)                            # the file elsewhere knows row 2
    (root / "heads.jsonl").unlink()
    closed(opened(root))
    assert signature_problems(root) == ["row 2 is not signed, and every row of its kind is"]


def test_a_ledger_stripped_of_all_signatures_is_not_signed_anew(root: Path) -> None:
    rewrite(root / "kaizend.db", lambda rows: rows[0].update(evidence={}))
    run_sql(root / "kaizend.db", "DELETE FROM heads")
    (root / "heads.jsonl").unlink()
    assert "its heads bear no signature" in refused(root)
    assert signature_problems(root) != []


def test_a_ledger_cut_back_to_an_earlier_head_is_known_by_the_file_elsewhere(root: Path) -> None:
    run_sql(root / "kaizend.db", "DELETE FROM heads WHERE row = 2", "DELETE FROM ledger WHERE id = 2")
    assert signature_problems(root) == []
    assert signature_problems(root, heads=root / "heads.jsonl") == [
        f"rows 2 to 2 are missing: {root / 'heads.jsonl'} holds a head of row 2"
    ]
    assert "does not hold row 2" in refused(root)


def test_another_key_is_taken_only_where_a_person_has_removed_the_public_one(root: Path) -> None:
    old = read_public(root / "signing.pub")
    (root / "signing.key").unlink()
    assert "signing.key is not there" in refused(root)
    assert not (root / "signing.key").exists()
    (root / "signing.pub").rename(root / "kept.pub")
    closed(opened(root))
    with Reading(root / "kaizend.db") as reading:
        last = list(reading.every_row())[-1]
    assert (last.event, last.change) == ("key", {"before": old, "after": read_public(root / "signing.pub")})
    check_heads(root)
    assert "but " in signature_problems(root, key=root / "kept.pub")[0]


def test_an_exchanged_key_is_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    closed(opened(other))
    (root / "signing.key").write_bytes((other / "signing.key").read_bytes())
    assert "signing.key is another key" in refused(root)
    (root / "signing.pub").write_bytes((other / "signing.pub").read_bytes())
    assert "is not the ledger that key" in refused(root)


@pytest.mark.parametrize(("text", "mode", "words"), [
    ("no key", 0o600, "not a private key"), ("", 0o600, "not a private key"), (None, 0o604, "chmod 600"),
])
def test_a_file_that_is_no_private_key_is_said_in_one_line(root: Path, text: str | None, mode: int, words: str) -> None:
    if text is not None:
        (root / "signing.key").write_text(text)
    (root / "signing.key").chmod(mode)
    assert words in refused(root)


def test_a_key_of_another_kind_is_refused(root: Path) -> None:
    subprocess.run(["openssl", "genpkey", "-algorithm", "x25519", "-out", "signing.key"], cwd=root, check=True)
    (root / "signing.key").chmod(0o600)
    assert "is not an Ed25519 key" in refused(root)


# ---------------------------------------------------------------- a folder of the first revision


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(OLD) as tar:
        tar.extractall(tmp_path, filter="tar")
    return tmp_path / "var"


def test_a_database_of_the_first_revision_opens_migrates_and_verifies(old: Path) -> None:
    with Reading(old / "kaizend.db") as reading:
        before = [row.to_json() for row in reading.every_row()]
        with pytest.raises(Exception, match="start the daemon once"):
            reading.heads()
    closed(opened(old))
    with Reading(old / "kaizend.db") as reading:
        assert reading.problems() == []
        rows = [row.to_json() for row in reading.every_row()]
    assert rows[:-1] == before
    assert (rows[-1]["event"], rows[-1]["change"]["before"]) == ("key", None)
    assert [head.row for head in heads_of(old)] == [rows[-1]["id"]]
    check_heads(old)
    with Reading(old / "kaizend.db.backup-0001") as kept:
        assert [row.to_json() for row in kept.every_row()] == before
    closed(opened(old))
    with Reading(old / "kaizend.db") as reading:
        assert reading.head()[0] == len(rows)                              # named once
    rewrite(old / "kaizend.db", lambda rows: rows[2].update(reason="looser"))
    assert signature_problems(old) != []                                   # what is older is covered as well


def test_the_journal_line_of_a_head_is_its_json(root: Path) -> None:
    head = heads_of(root)[-1]
    assert json.loads((root / "heads.jsonl").read_text().splitlines()[-1]) == head.to_json()
