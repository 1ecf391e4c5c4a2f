"""An exported ledger: whatever is done to its bytes ends in a problem or one clear line, never in a traceback."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from court import canned_court
from signatures import rechained

from daemon.audit import audit_file
from daemon.ledger_file import LedgerFile, write_ledger
from safety.release import nominate
from state.errors import UserError


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a life with one release, beside its state folder."""
    folder = tmp_path_factory.mktemp("exported")
    court = canned_court(folder / "var")
    court.move_working(court.text_model("second"))
    assert nominate(court.desk) is not None
    court.ledger.database.close()
    (folder / "kaizend.toml").write_text("[models]\n")
    write_ledger(folder, folder / "ledger.jsonl")
    return folder / "ledger.jsonl"


def verdict(file: Path, key: Path) -> int | str:
    try:
        return audit_file(file, key, None, as_json=False)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)


def test_what_was_exported_holds(exported: Path) -> None:
    found = LedgerFile(exported)
    assert found.problems == [] and found.head[0] == len(list(found.rows())) > 5
    assert verdict(exported, exported.parent / "var" / "signing.pub") == 0


def test_whatever_happens_to_its_bytes_is_found(exported: Path, tmp_path: Path) -> None:
    chance, whole, key = random.Random(0), exported.read_bytes(), exported.parent / "var" / "signing.pub"
    values = [json.loads(line) for line in whole.splitlines()]
    for _ in range(300):
        spoiled = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(spoiled))
            act = chance.randrange(4)
            if act == 0:
                spoiled[place] = chance.randrange(256)
            elif act == 1:
                del spoiled[place: place + chance.choice((1, 50, 5000))]
            elif act == 2:
                spoiled[place:place] = spoiled[: chance.choice((1, 50))]
            else:
                spoiled[place] ^= 1 << chance.randrange(8)
        (tmp_path / "spoiled").write_bytes(spoiled)
        if verdict(tmp_path / "spoiled", key) == 0:
            left = [json.loads(line) for line in spoiled.decode().splitlines()]
            assert [line for line in left if "kaizend" not in line] == values[1:]      # the header vouches for nothing


@pytest.mark.parametrize(
    "value", [None, 5, "torn", [], {}, [[]], {"scores": [1]}, {"scores": {}, "k": {}}, {"moves": 1, "nomination": []}]
)
@pytest.mark.parametrize("field", ["evidence", "change", "event", "hash", "parent", "cost"])
def test_rows_of_any_shape_under_a_whole_chain_are_found(
    exported: Path, tmp_path: Path, field: str, value: Any
) -> None:
    lines = [json.loads(line) for line in exported.read_text().splitlines()]
    rows = [line["row"] for line in lines if "row" in line]
    for event in ("genesis", "nominated", "release"):
        number = next(number for number, row in enumerate(rows) if row["event"] == event)
        forged = rechained([row | ({field: value} if at == number else {}) for at, row in enumerate(rows)])
        if field == "hash":
            forged[number]["hash"] = value
        if forged == rows:
            continue
        file = tmp_path / "forged"
        file.write_text("".join(
            json.dumps(line) + "\n"
            for line in [*(line for line in lines if "row" not in line), *({"row": row} for row in forged)]
        ))
        assert verdict(file, exported.parent / "var" / "signing.pub") == 1
