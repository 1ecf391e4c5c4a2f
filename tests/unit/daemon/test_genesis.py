"""A life's beginning and what later starts make of it, where tasks read a file: read once, by the sealing alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from court import InlineRunner, canned
from make_believe import BOUNDS, CONFIG, write_model
from sealing import seal_of

from daemon.genesis import Beginnings, began, begin, changed_files, placed_tasks, refuse_unusable
from daemon.kinds import artefact_kind
from daemon.settings import load_settings
from safety.bounds import load_bounds
from safety.yardstick.sealed import seal_tasks
from safety.yardstick.tasks import sealed_ids
from state.database import Database
from state.errors import ConfigurationError, UserError
from state.jobbook import JobBook
from state.jobs import JobSpec
from state.records import Event
from state.registry import Registry
from state.signed import signed_ledger

OLD_TASK = '''source = { kind = "bilingual", family = "maths1" }'''
NEW_TASK = '''source = { kind = "jsonl", path = "told.jsonl" }'''


class Folder:
    """A kaizend folder with a task that reads a file, and what a start of the daemon makes of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.file = root, root / "told.jsonl"
        for name in ("base", "one", "two"):
            write_model(root / "models" / name, 0.3, name)
        (root / "models" / "rows.jsonl").write_text('{"prompt": "one plus one", "answer": "two"}\n')
        (root / "kaizend.toml").write_text(CONFIG.replace(OLD_TASK, NEW_TASK))
        (root / "bounds.toml").write_text(BOUNDS)
        self.write(150)
        database = Database(root / "kaizend.db")
        database.migrate()
        self.registry = Registry(root, database)
        self.ledger = signed_ledger(
            database, self.registry, root / "signing.key", root / "signing.pub", None
        )
        self.asked: list[JobSpec] = []
        self.runner = InlineRunner(
            self.registry, JobBook(database), {**canned(), "seal": self.seal}, kind_of=artefact_kind
        )

    def seal(self, spec, desk):                                                                    # type: ignore
        self.asked.append(spec)
        return seal_tasks(spec, desk)

    def write(self, items: int) -> None:
        lines = (json.dumps({"prompt": f"say {i} please", "answer": str(i)}) for i in range(items))
        self.file.write_text("\n".join(lines))

    def start(self, code: str = "code") -> Beginnings:
        settings = load_settings(self.root / "kaizend.toml")
        return begin(
            settings, self.root, self.ledger, self.registry, self.runner, load_bounds(self.root / "bounds.toml"), code
        )

    def notices(self, begun: Beginnings) -> list[str]:
        return list(changed_files(placed_tasks(load_settings(self.root / "kaizend.toml"), self.root), begun.tasks))

    def made_by_an_earlier_version(self) -> str:
        """Let the GENESIS row name a seal without pools, as rows did before there were any. Returns its digest."""
        row = self.ledger.latest(Event.GENESIS)
        assert row is not None
        begun = Beginnings.from_json(row.change)
        old = seal_of([], self.root / "old", sealed_ids(self.registry.path(begun.seal)))
        digest = self.registry.add_copy(old, "seal")
        self.registry.remove(begun.seal)
        latest = self.ledger.latest
        self.ledger.latest = lambda event: (                                                       # type: ignore
            replace(row, change={**row.change, "seal": digest}) if event is Event.GENESIS else latest(event)
        )
        return digest


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    yield Folder(tmp_path)


def test_no_task_of_a_life_names_its_file_and_only_the_sealing_was_told_it(folder: Folder) -> None:
    first, again = folder.start(), folder.start()
    assert first == again
    assert str(folder.file) not in json.dumps([task.to_json() for task in first.tasks])
    assert [spec.kind for spec in folder.asked] == ["seal"]
    assert len(first.tasks[1].source["sha256"]) == 64
    pool = folder.registry.path(first.seal) / "maths1.jsonl"
    assert len(pool.read_text().splitlines()) == 50
    assert folder.notices(first) == []


@pytest.mark.parametrize("change", [lambda f: f.write(151), lambda f: f.file.unlink()])
def test_a_file_that_is_changed_or_gone_later_changes_nothing_and_a_line_says_so(folder: Folder, change) -> None:
    first = folder.start()
    change(folder)
    assert folder.start(code="a later version") == first
    (said,) = folder.notices(first)
    assert "told.jsonl" in said and "its items stay those that this state folder began with" in said
    assert "\n" not in said


def test_another_file_with_something_else_in_it_is_another_task(folder: Folder) -> None:
    first = folder.start()
    (folder.root / "moved.jsonl").write_bytes(folder.file.read_bytes())
    config = folder.root / "kaizend.toml"
    config.write_text(config.read_text().replace("told.jsonl", "moved.jsonl"))
    assert folder.start() == first
    (folder.root / "moved.jsonl").write_text('{"prompt": "a", "answer": "b"}')
    with pytest.raises(ConfigurationError, match=r"the tasks of kaizend\.toml are not those"):
        folder.start()


def test_a_task_without_a_path_is_refused_although_it_has_a_digest(folder: Folder) -> None:
    config = folder.root / "kaizend.toml"
    config.write_text(config.read_text().replace('path = "told.jsonl"', 'sha256 = "abc"'))
    with pytest.raises(UserError, match="needs 'path'"):
        folder.start()


def test_a_life_of_an_earlier_version_gets_its_pools_once_from_the_unchanged_file(folder: Folder) -> None:
    first = folder.start()
    old = folder.made_by_an_earlier_version()
    begun = folder.start()
    assert begun.seal != old
    assert (begun.vault, begun.guard, begun.tasks) == (first.vault, first.guard, first.tasks)
    pool = (folder.registry.path(begun.seal) / "maths1.jsonl").read_text()
    assert len(pool.splitlines()) == 50
    assert not any(item in pool for item in sealed_ids(folder.registry.path(old)))
    folder.file.unlink()
    assert folder.start(code="a later version") == begun
    assert len(folder.asked) == 2


@pytest.mark.parametrize("change", [lambda f: f.write(151), lambda f: f.file.unlink()])
def test_where_its_file_is_another_one_now_a_line_says_to_put_it_back(folder: Folder, change) -> None:
    folder.start()
    folder.made_by_an_earlier_version()
    change(folder)
    with pytest.raises(ConfigurationError, match="put the file back as it was for one start") as refusal:
        folder.start()
    assert "told.jsonl" in str(refusal.value) and "\n" not in str(refusal.value)
    folder.write(150)
    folder.start()


def test_what_kind_of_rows_a_source_has_is_settled_at_the_beginning(folder: Folder) -> None:
    config = folder.root / "kaizend.toml"
    config.write_text(config.read_text().replace("[data]\n", '[data]\nchoices = "models/choices.jsonl"\n'))
    pair = {"prompt": "two plus two", "chosen": "four", "rejected": "five"}
    (folder.root / "models" / "choices.jsonl").write_text(json.dumps(pair) + "\n")
    begun = folder.start()
    assert begun == folder.start() == Beginnings.from_json(begun.to_json())
    assert begun.data_of(preferences=True) == {"choices": begun.data["choices"]}
    assert begun.data_of(preferences=False) == {"rows": begun.data["rows"]}
    older = {name: value for name, value in begun.to_json().items() if name != "preferences"}
    assert Beginnings.from_json(older).data_of(preferences=False) == begun.data
    (folder.root / "models" / "choices.jsonl").write_text('{"prompt": "two plus two", "chosen": "four"}')
    with pytest.raises(UserError, match="line 1: rejected must be text, it is missing"):
        refuse_unusable(load_settings(config), folder.root, load_bounds(folder.root / "bounds.toml"))


def test_commands_read_the_same_beginnings(folder: Folder) -> None:
    assert began(folder.root / "nowhere.db") is None
    begun = folder.start()
    found = began(folder.root / "kaizend.db")
    assert found is not None and (found.seal, found.guard, found.vault) == (begun.seal, begun.guard, begun.vault)


def test_a_life_is_not_told_to_search_paths_that_its_models_do_not_have(folder: Folder) -> None:
    """Whether the life has begun already or not: one line that names the model, and nothing is done."""
    for name in ("base", "one", "two"):
        file = folder.root / "models" / name / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "olmo2"}))
    merges = (folder.root / "kaizend.toml").read_text()
    flowing = merges.replace("[architecture]", '[architecture]\nspace = "both"', 1)
    assert flowing != merges
    (folder.root / "kaizend.toml").write_text(flowing)
    with pytest.raises(UserError, match="no path can be laid through layers of model_type 'olmo2'"):
        folder.start()
    (folder.root / "kaizend.toml").write_text(merges)
    folder.start()
    (folder.root / "kaizend.toml").write_text(flowing)
    with pytest.raises(ConfigurationError, match=r"architecture\.space: .*no path can be laid"):
        folder.start()
