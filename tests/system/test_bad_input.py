"""Bad input and a host that cannot serve: one clear line, exit 2 (78 under systemd), and nothing was changed."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from watching import asked, channels, complaint, kaizend, listing, rows, serving

from safety.headers import tensor_headers

Spoil = Callable[[Path], object]


def refused(folder: Path, code: int = 2, **environment: str) -> str:
    """What `kaizend run` says, after checking that it left the folder as it was."""
    before = listing(folder)
    said = complaint(kaizend(folder, "run", "--cycles", "1", **environment), code)
    assert listing(folder) == before
    return said


def edited(name: str, old: str, new: str) -> Spoil:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))
    return edit


def without_a_model(folder: Path) -> None:
    shutil.rmtree(folder / "models" / "expert-language")


def with_pickled_weights(folder: Path) -> None:
    model = folder / "models" / "expert-language"
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def with_another_tokenizer(folder: Path) -> None:
    file = folder / "models" / "expert-language" / "tokenizer.json"
    body = json.loads(file.read_text())
    words = body["model"]["vocab"]
    last = max(words, key=words.get)
    words["kaizen"] = words.pop(last)
    file.write_text(json.dumps(body))


def with_remote_code(folder: Path) -> None:
    file = folder / "models" / "base" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {"AutoModel": "evil.Model"}}))


def with_truncated_weights(folder: Path) -> None:
    weights = folder / "models" / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def asking_for_impossible_paths(folder: Path) -> None:
    """What does for merges does not for paths."""
    for file in sorted((folder / "models").glob("*/config.json")):
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "olmo2"}))
    edited("kaizend.toml", "[architecture]", '[architecture]\nspace = "both"')(folder)


def with_an_empty_task_file(folder: Path) -> None:
    (folder / "questions.jsonl").write_text("\n")
    edited("kaizend.toml", 'source = { kind = "bilingual", family = "maths1" }',
           'source = { kind = "jsonl", path = "questions.jsonl" }')(folder)


def with_a_row_of_numbers(folder: Path) -> None:
    (folder / "models" / "data" / "expert_maths.jsonl").write_text(
        '{"prompt": "1 + 1", "answer": "2"}\n{"prompt": "1 + 2", "answer": 3}\n')


def without_rows(folder: Path) -> None:
    (folder / "models" / "data" / "expert_language.jsonl").write_text("\n")


def with_a_table_of_numbers(folder: Path) -> None:
    parquet.write_table(pyarrow.table({"prompt": ["1 + 1"], "answer": [2]}), data_of(folder))


def with_a_table_without_rows(folder: Path) -> None:
    columns = {name: pyarrow.array([], pyarrow.string()) for name in ("prompt", "answer")}
    parquet.write_table(pyarrow.table(columns), data_of(folder))


def with_a_torn_table(folder: Path) -> None:
    parquet.write_table(pyarrow.table({"prompt": ["1 + 1"], "answer": ["2"]}), data_of(folder))
    data_of(folder).write_bytes(data_of(folder).read_bytes()[:-20])


def with_half_a_character(folder: Path) -> None:
    data_of(folder).write_text('{"prompt": "1 + 1", "answer": "2"}\n{"prompt": "1 \\ud800 2", "answer": "3"}\n')


def with_a_conversation(folder: Path) -> None:
    turns = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
    data_of(folder).write_text(json.dumps({"messages": turns}))


def data_of(folder: Path) -> Path:
    return folder / "models" / "data" / "expert_maths.jsonl"


def with_something_in_the_way(folder: Path) -> None:
    (folder / "var").write_text("not a folder")


@pytest.mark.parametrize(("spoil", "said"), [
    (without_a_model, "models/expert-language: there is no such model folder"),
    (with_pickled_weights, "there are no safetensors weights (pytorch_model.bin cannot be used: convert it)"),
    (with_another_tokenizer, "2 tokens differ: "),
    (with_remote_code, "auto_map: code that comes with a model is never run"),
    (with_truncated_weights, "model.safetensors: truncated"),
    (asking_for_impossible_paths, "no path can be laid through layers of model_type 'olmo2'"),
    (edited("models/base/README.md", "apache-2.0", "cc-by-nc-4.0"), "licence 'cc-by-nc-4.0' is not in supply.licences"),
    (edited("kaizend.toml", "seed = 8", "seed = = 5"), "kaizend.toml: not valid TOML"),
    (edited("bounds.toml", "[rate]", "[rate"), "bounds.toml: not valid TOML"),
    (edited("kaizend.toml", "seed = 8", "sede = 5"), "kaizend.toml: sede: unknown key"),
    (edited("kaizend.toml", "patience", "patients"), "kaizend.toml: architecture.patients: unknown key"),
    (edited("kaizend.toml", "patience", "groups = 5\npatience"), "has 4 layers, too few for architecture.groups = 5"),
    (edited("kaizend.toml", "patience", "mean = -0.1\npatience"), "mean is -0.1, a weight must be between 0 and 2.5"),
    (edited("kaizend.toml", "stop_seconds = 5", 'stop_seconds = "x"'), "kaizend.toml: service.stop_seconds: "),
    (edited("kaizend.toml", 'name = "maths1"', 'name = "maths2"'), "two tasks have the same name"),
    (edited("bounds.toml", "dwell_seconds", "dwel_seconds"), "bounds.toml: "),
    (edited("bounds.toml", "dwell_seconds = 0.0", "dwell_seconds = -1.0"), "dwell_seconds"),
    (edited("kaizend.toml", "expert_maths.jsonl", "nothing.jsonl"), "nothing.jsonl is not a file"),
    (with_a_row_of_numbers, "data.maths: expert_maths.jsonl, line 2: answer must be text, it is int"),
    (without_rows, "expert_language.jsonl has no rows"),
    (with_a_table_of_numbers, "data.maths: expert_maths.jsonl, row 1: answer must be text, it is int"),
    (with_a_table_without_rows, "expert_maths.jsonl has no rows"),
    (with_a_torn_table, "data.maths: expert_maths.jsonl: not readable as Parquet"),
    (with_half_a_character, "data.maths: expert_maths.jsonl, line 2: prompt holds half a character"),
    (with_a_conversation, "expert_maths.jsonl has conversations, and the model"),
    (with_an_empty_task_file, "questions.jsonl: the file is empty"),
    (with_something_in_the_way, "the state folder"),
    (lambda folder: (folder / "bounds.toml").unlink(), "bounds.toml: cannot be read"),
    (lambda folder: (folder / "kaizend.toml").unlink(), "no kaizend.toml in this folder"),
])
def test_what_cannot_be_used_is_refused_before_anything_is_made(fresh: Path, spoil: Spoil, said: str) -> None:
    spoil(fresh)
    assert said in refused(fresh)


def test_differing_tokens_and_unknown_bounds_are_named(fresh: Path) -> None:
    with_another_tokenizer(fresh)
    assert "'kaizen'" in refused(fresh)
    edited("bounds.toml", "dwell_seconds", "dwel_seconds")(fresh)
    said = refused(fresh)
    assert "'dwel_seconds'" in said
    assert "[rate]" in said


@pytest.mark.parametrize("spoil", [
    edited("kaizend.toml", "seed = 8", "sede = 5"), edited("bounds.toml", "[rate]", "[rate"), with_something_in_the_way,
])
def test_under_systemd_the_exit_code_says_that_a_restart_would_not_help(fresh: Path, spoil: Spoil) -> None:
    spoil(fresh)
    refused(fresh, 78, INVOCATION_ID="1")


def without(listed: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in listed.items() if not name.startswith("var")}


def test_a_model_with_one_weight_that_is_not_a_number_is_refused_and_not_kept(fresh: Path) -> None:
    weights = fresh / "models" / "expert-language" / "model.safetensors"
    body = bytearray(weights.read_bytes())
    assert {header.dtype for header in tensor_headers(weights.parent).values()} == {"float32"}
    body[-4:] = b"\x00\x00\xc0\x7f"
    weights.write_bytes(body)
    before = without(listing(fresh))
    said = complaint(kaizend(fresh, "run", "--cycles", "1"))
    assert "models/expert-language: model.non_finite: 1 is outside 0" in said
    assert without(listing(fresh)) == before
    assert channels(fresh) == {}
    assert rows(fresh) == []
    assert not any(weights.read_bytes() == kept.read_bytes() for kept in (fresh / "var").rglob("model.safetensors"))


def test_a_vault_that_overlaps_the_training_data_is_refused(fresh: Path) -> None:
    lines = (fresh / "models" / "data" / "expert_maths.jsonl").read_text().splitlines()[:120]
    (fresh / "questions.jsonl").write_text("\n".join(dict.fromkeys(lines)) + "\n")
    edited("kaizend.toml", "vault_items = 2000\nsource = { kind = \"bilingual\", family = \"maths2\" }",
           'vault_items = 20\nsource = { kind = "jsonl", path = "questions.jsonl" }')(fresh)
    before = without(listing(fresh))
    said = complaint(kaizend(fresh, "run", "--cycles", "1"))
    assert "data source 'maths'" in said
    assert "20 of 20 vault items of task maths2 are in it" in said
    assert without(listing(fresh)) == before
    assert channels(fresh) == {}
    assert rows(fresh) == []


def test_bounds_that_refused_the_first_start_may_be_loosened_before_the_next(fresh: Path) -> None:
    """Nothing has begun, so there is nothing to record a loosening in."""
    text = (fresh / "bounds.toml").read_text()
    (fresh / "bounds.toml").write_text(text + "\n[model]\nmax_parameters = 1000\n")
    assert "model.max_parameters" in complaint(kaizend(fresh, "run", "--cycles", "1"))
    (fresh / "bounds.toml").write_text(text)
    done = kaizend(fresh, "run", "--cycles", "1")
    assert done.returncode == 0, done.stderr
    assert [row.event for row in rows(fresh)][:2] == ["genesis", "bounds"]


@pytest.mark.parametrize(("old", "new", "what"), [
    ('parents = ["models/expert-maths", ', 'parents = [', "models"),
    ('maths = "models/data/expert_maths.jsonl"\n', "", "data"),
])
def test_models_and_data_that_changed_since_the_start_are_refused(life: Path, old: str, new: str, what: str) -> None:
    edited("kaizend.toml", old, new)(life)
    assert f"the {what} of kaizend.toml are not those" in complaint(kaizend(life, "run", "--cycles", "1"), 78)


def test_tasks_that_changed_since_the_vault_was_drawn_are_refused(life: Path) -> None:
    edited("kaizend.toml", "vault_items = 2000", "vault_items = 2001")(life)
    before = channels(life), len(rows(life))
    said = complaint(kaizend(life, "run", "--cycles", "1"), 78)
    assert "the tasks of kaizend.toml are not those this state folder began with" in said
    assert (channels(life), len(rows(life))) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB, where this user may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def move_state(life: Path, disk: Path) -> None:
    shutil.move(life / "var", disk / "var")
    (life / "var").symlink_to(disk / "var")


def test_a_full_disk_at_the_first_start_is_one_clear_line(fresh: Path, small_disk: Path) -> None:
    edited("kaizend.toml", "[service]", f'[service]\nstate = "{small_disk / "var"}"')(fresh)
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 1_000_000))
    before = listing(fresh)
    assert "no space left" in complaint(kaizend(fresh, "run", "--cycles", "1"))
    assert listing(fresh) == before


def test_a_rollback_on_a_full_disk_changes_nothing_and_works_once_there_is_space(life: Path, small_disk: Path) -> None:
    move_state(life, small_disk)
    before = channels(life)
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
        while True:
            ballast.write(bytes(1 << 16))
    assert "no space left" in complaint(kaizend(life, "rollback", "--reason", "bad"))
    (small_disk / "ballast").unlink()
    assert channels(life) == before
    assert asked(life, "verify")["holds"]
    assert kaizend(life, "rollback", "--reason", "bad").returncode == 0
    assert asked(life, "verify")["holds"]


def test_a_read_only_state_folder_can_be_read_and_refuses_the_rest(life: Path, small_disk: Path) -> None:
    move_state(life, small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    before = listing(small_disk)
    assert "cannot be written" in complaint(kaizend(life, "run", "--cycles", "1"))
    assert "ead-only" in complaint(kaizend(life, "rollback", "--reason", "bad"))
    assert kaizend(life, "log").returncode == 0
    assert asked(life, "verify")["holds"]
    assert listing(small_disk) == before


def test_a_second_instance_is_one_clear_line(life: Path) -> None:
    (life / "var" / "STOP").touch()
    with serving(life) as process:
        count = len(rows(life))
        assert f"kaizend is already running on {life / 'var'} (process {process.pid})" in complaint(
            kaizend(life, "run", "--cycles", "1"))
        for words in (("gc", "--apply"), ("bounds", "loosen", "--reason", "more")):
            done = kaizend(life, *words)
            assert "Traceback" not in done.stderr
        assert len(rows(life)) == count
        complaint(kaizend(life, "run", INVOCATION_ID="1"), 78)
