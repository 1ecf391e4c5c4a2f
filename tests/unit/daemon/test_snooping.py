"""A proposer's job that reads everything its process was given or inherited finds no vault item and no outcome.

What it could read by wandering through the file system is another matter: it runs as the daemon's user, and only a
sandbox keeps it from the state folder.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_house import House

from safety import landlock
from state.jobs import JobFailed, JobSpec

ROOT = Path(__file__).resolve().parents[3]
TABLE = ROOT / "tests" / "snooping_jobs.py"
SNOOPERS = ("screen", "train", "compare")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """One worker place, so that whatever one process leaves the next job of it would find."""
    with House(tmp_path / "var", table=TABLE, workers=1) as house:
        yield house


@pytest.fixture
def vault(house: House, tmp_path: Path) -> str:
    folder = tmp_path / "sealed"
    folder.mkdir()
    (folder / "items.jsonl").write_text('{"prompt": "vault-item-0123456789abcdef0123456789abcdef", "answer": "1"}\n')
    return house.registry.add_copy(folder, "vault")


def given(house: House, tmp_path: Path, text: str = "{}") -> dict[str, str]:
    """What proposers' jobs are given: a model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "items.jsonl").write_text(text)
    return {"model:new": house.registry.add_copy(folder, "model")}


@pytest.mark.parametrize("kind", SNOOPERS)
def test_it_finds_nothing_where_it_may_look(house: House, vault: str, tmp_path: Path, kind: str) -> None:
    inputs = given(house, tmp_path)
    warm = house.runner.run(JobSpec(kind, inputs, {"round": 1})).values
    answer = house.runner.run(JobSpec("gate", {"vault": vault}))
    found = house.runner.run(JobSpec(kind, inputs, {"round": 2})).values
    assert answer.values["outcome"].startswith("vault-outcome-")
    assert found["pid"] != answer.values["pid"]
    assert warm["found"] == found["found"] == []
    assert found["looked"]["its environment"] > 0
    assert found["looked"]["its inputs"] > 0


def test_neither_does_one_after_the_job_that_drew_the_vault(house: House, tmp_path: Path) -> None:
    drawn = given(house, tmp_path, '{"prompt": "vault-item-0123456789abcdef0123456789abcdef"}')
    house.runner.run(JobSpec("seal", {"vault": drawn["model:new"]}))
    assert house.runner.run(JobSpec("screen")).values["found"] == []


def test_the_snoop_would_see_what_it_is_given(house: House, tmp_path: Path) -> None:
    """Or its finding nothing would mean nothing."""
    folder = tmp_path / "leak"
    folder.mkdir()
    (folder / "data.jsonl").write_text("vault-item-" + "ab" * 16)
    leaked = house.registry.add_copy(folder, "data")
    values = house.runner.run(JobSpec("screen", {"data": leaked}, {"note": "vault-outcome-" + "cd" * 16})).values
    assert values["found"] == ["its inputs", "its memory", "its own order"]


@pytest.mark.parametrize("kind", (*SNOOPERS, "score"))
def test_it_is_not_given_the_vault_under_any_name(house: House, vault: str, kind: str) -> None:
    for name in ("vault", "data:maths", "model:new", "seal"):
        with pytest.raises(JobFailed, match="is the vault"):
            house.runner.run(JobSpec(kind, {name: vault}))


def test_sealed_files_are_for_their_owner_only(house: House, vault: str) -> None:
    """Permission keeps other users out. It does not keep out a job of the same user, nor root."""
    place = house.registry.path(vault)
    assert stat.S_IMODE((place / "items.jsonl").stat().st_mode) == 0o400
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


@pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
def test_it_finds_nothing_by_wandering_either(house: House, vault: str) -> None:
    answer = house.runner.run(JobSpec("gate", {"vault": vault}))
    paths = [str(house.registry.path(vault) / "items.jsonl"), str(house.registry.path(answer.outputs["scores"]))]
    assert all(Path(path).is_file() for path in paths)
    asked = JobSpec("score", {}, {"state": str(house.folder.resolve()), "paths": paths})
    assert house.runner.run(asked).values["found"] == []
