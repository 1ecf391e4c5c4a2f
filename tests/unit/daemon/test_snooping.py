"""A proposer's job that reads everything its process was given or inherited finds no vault item and no outcome.

What it could read by wandering through the file system is another matter: it runs as the daemon's user, and only a
sandbox keeps it from the state folder.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from toy_house import House

from daemon.genesis import pools_spec
from daemon.scoring import _nothing_sealed
from safety import landlock
from safety.yardstick.items import TaskSpec
from safety.yardstick.sealed import load_guard, load_vault
from safety.yardstick.tasks import pinned, unplaced
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
    return {"model:new": house.registry.add_copy(given_folder(tmp_path / "model", text), "model")}


def given_folder(folder: Path, text: str = "{}") -> Path:
    folder.mkdir()
    (folder / "items.jsonl").write_text(text)
    return folder


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


@dataclass(frozen=True)
class Sealed:
    """A file whose items two tasks share, and what the real sealing made of it."""

    file: Path
    tasks: list[TaskSpec]
    seal: str
    vault: str
    marks: frozenset[str]                       # of the sealed items
    left: frozenset[str]                        # of the others


@pytest.fixture
def from_file(house: House, tmp_path: Path) -> Sealed:
    file = tmp_path / "operator" / "questions.jsonl"
    file.parent.mkdir()
    marks = [f"file-item-{number:032x}" for number in range(60)]
    file.write_text("".join(json.dumps({"prompt": f"say {mark}", "answer": mark}) + "\n" for mark in marks))
    source = {"kind": "jsonl", "path": str(file)}
    tasks = [pinned(TaskSpec("told", "target", source, vault_items=20)),
             pinned(TaskSpec("kept", "guard", source, guard_items=15))]
    made = house.runner.run(JobSpec("seal", {}, {"tasks": [task.to_json() for task in tasks]}, 1)).outputs
    vault, guard = (load(house.registry.path(made[split]), task) for load, split, task in (
        (load_vault, "vault", tasks[0]), (load_guard, "guard", tasks[1])))
    sealed = frozenset(item.answer for item in (*vault, *guard))
    assert len(sealed) == 35
    return Sealed(file, tasks, made["seal"], made["vault"], sealed, frozenset(marks) - sealed)


def asked_of(from_file: Sealed, **more: object) -> dict[str, object]:
    """The parameters that search jobs get."""
    return {"tasks": [unplaced(task).to_json() for task in from_file.tasks], **more}


@pytest.mark.parametrize("kind", SNOOPERS)
def test_of_a_file_it_finds_what_is_left_to_search_and_nothing_sealed(
    house: House, from_file: Sealed, kind: str
) -> None:
    found = house.runner.run(JobSpec(kind, {"seal": from_file.seal}, asked_of(from_file))).values
    assert set(found["marks"]) == from_file.left
    assert set(found["found"]) <= {"its inputs", "its memory"}
    assert house.runner.run(JobSpec(kind, {}, asked_of(from_file, round=2))).values["looked"]["its own order"] > 0


def test_where_no_life_has_begun_a_score_gets_its_pool_from_a_sealing_too(
    house: House, from_file: Sealed, tmp_path: Path
) -> None:
    nothing = house.registry.add_copy(_nothing_sealed(tmp_path), "seal")
    seal = house.runner.run(pools_spec(nothing, from_file.tasks[:1], "")).outputs["seal"]
    found = house.runner.run(JobSpec("screen", {"seal": seal}, asked_of(from_file))).values["marks"]
    vault = load_vault(house.registry.path(from_file.vault), from_file.tasks[0])
    assert len(found) == 40
    assert not set(found) & {item.answer for item in vault}


def wandering(house: House, from_file: Sealed, kind: str = "score", **more: object) -> set[str]:
    """The marks that a job finds which walks through everything, and has been told where the operator's file is."""
    paths = [str(from_file.file), *(str(house.registry.path(d) / f"{t.name}.jsonl")
                                    for d in house.registry.digests() for t in from_file.tasks)]
    asked = asked_of(from_file, state=str(house.folder.resolve()), paths=paths, **more)
    return set(house.runner.run(JobSpec(kind, {"seal": from_file.seal}, asked)).values["marks"])


@pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
def test_it_finds_nothing_sealed_of_a_file_by_wandering_either(house: House, from_file: Sealed) -> None:
    assert wandering(house, from_file) == from_file.left


@pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
def test_a_task_that_names_its_file_does_not_open_it_to_any_job_but_the_sealing(
    house: House, from_file: Sealed
) -> None:
    named = [task.to_json() for task in from_file.tasks]
    assert all("path" in task["source"] for task in named)
    assert wandering(house, from_file, tasks=named) == from_file.left


@pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
def test_where_the_barrier_is_open_it_finds_the_whole_vault(
    house: House, from_file: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its finding nothing would mean nothing."""
    monkeypatch.setattr("daemon.runner.sources_of", lambda spec: (str(from_file.file),))
    assert wandering(house, from_file) == from_file.marks | from_file.left


def test_the_snoop_would_see_what_it_is_given(house: House, tmp_path: Path) -> None:
    """Or its finding nothing would mean nothing."""
    folder = tmp_path / "leak"
    folder.mkdir()
    (folder / "data.jsonl").write_text("vault-item-" + "ab" * 16)
    leaked = house.registry.add_copy(folder, "data")
    values = house.runner.run(JobSpec("screen", {"data": leaked}, {"note": "vault-outcome-" + "cd" * 16})).values
    assert values["found"] == ["its inputs", "its memory", "its own order"]


@pytest.mark.parametrize("kind", (*SNOOPERS, "score"))
def test_it_is_not_given_a_sealed_split_under_any_name(house: House, vault: str, tmp_path: Path, kind: str) -> None:
    guard = house.registry.add_copy(given_folder(tmp_path / "guard"), "guard")
    for name in ("vault", "data:maths", "model:new", "seal"):
        for split, digest in (("vault", vault), ("guard", guard)):
            with pytest.raises(JobFailed, match=f"is the {split}"):
                house.runner.run(JobSpec(kind, {name: digest}))


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
