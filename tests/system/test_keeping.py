"""What carries a folder through its life: init and check, score, export, gc, backup and restore."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from miniature import environment
from watching import asked, channels, complaint, kaizend, links_agree, listing, rows, serving, stop

GENERATE = """\
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
print(model.generate(**tokenizer("a", return_tensors="pt"), max_new_tokens=2, do_sample=False).shape[0])
"""


def test_init_writes_two_files_and_check_says_what_they_still_lack(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    done = kaizend(tmp_path, "init", "new")
    assert done.stdout == "wrote new/kaizend.toml\nwrote new/bounds.toml\n"
    assert "exists: it is left as it is" in complaint(kaizend(tmp_path, "init", "new"))
    done = kaizend(folder, "check", "--json")
    lacking = [found["text"] for found in json.loads(done.stdout)["findings"] if not found["ok"]]
    assert done.returncode == 2
    for name in ("models/expert-a", "models/expert-b", "models/base", "data/a.jsonl", "data/questions.jsonl"):
        assert any(name in text for text in lacking), name
    assert "Traceback" not in done.stderr
    assert "PROBLEM" in kaizend(folder, "check").stdout
    assert sorted(path.name for path in folder.iterdir()) == ["bounds.toml", "kaizend.toml"]


def test_check_passes_on_the_miniature_and_changes_nothing(fresh: Path) -> None:
    before = listing(fresh)
    assert asked(fresh, "check")["ready"]
    assert kaizend(fresh, "check").returncode == 0
    assert listing(fresh) == before


def test_score_tells_each_tasks_accuracy_and_leaves_no_trace(life: Path) -> None:
    with (life / "kaizend.toml").open("r+") as config:                    # a nursery of its own, as users have it
        text = "".join(line for line in config if not line.startswith("nursery"))
        config.seek(0)
        config.truncate()
        config.write(text)
    before = listing(life)
    done = kaizend(life, "score", "models/expert-maths", "-n", "60", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = {body["task"]: body for body in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == {"maths2", "maths1"}
    assert all(body["n"] == 60 and 0 <= body["low"] <= body["mean"] <= body["high"] <= 1 for body in found.values())
    assert listing(life) == before


def test_what_is_exported_loads_and_its_card_names_licences_and_evidence(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert kaizend(finished, "export", str(folder)).returncode == 0
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert channels(finished)["stable"] in card
    assert "PROMOTED, better on the vault" in card
    assert json.loads((folder / "lineage.json").read_text())[0]["model"] == channels(finished)["stable"]
    loaded = subprocess.run(
        [sys.executable, "-c", GENERATE, str(folder)], capture_output=True, text=True, env=environment(), check=False)
    assert loaded.stdout == "1\n", loaded.stderr
    assert "is not an empty folder" in complaint(kaizend(finished, "export", "stable", str(folder)))
    assert kaizend(finished, "export", "working", str(tmp_path / "other")).returncode == 0


def test_gc_gives_up_only_what_nothing_needs(life: Path) -> None:
    before = listing(life)
    dry = kaizend(life, "gc")
    assert "can go: add --apply" in dry.stdout
    assert listing(life) == before
    done = kaizend(life, "gc", "--apply")
    assert done.stdout.splitlines()[:-1] == dry.stdout.splitlines()[:-1]
    assert len(listing(life)) < len(before)
    assert asked(life, "verify")["holds"]
    assert kaizend(life, "gc").stdout == "0 artefacts, 0 bytes can go\n"
    assert kaizend(life, "lineage").returncode == kaizend(life, "log").returncode == 0
    assert kaizend(life, "rollback", "--reason", "still possible").returncode == 0
    assert kaizend(life, "run", "--cycles", "1").returncode == 0
    assert asked(life, "verify")["holds"]


def test_a_backup_is_restored_elsewhere_and_verifies(life: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "kaizend.tar", tmp_path / "other"
    (life / "var" / "STOP").touch()
    with serving(life) as process:
        assert kaizend(life, "backup", str(file)).returncode == 0         # also while the daemon runs
        stop(process, 10)
    assert "a backup never overwrites" in complaint(kaizend(life, "backup", str(file)))
    other.mkdir()
    for name in ("kaizend.toml", "bounds.toml"):
        shutil.copy(life / name, other / name)
    done = kaizend(other, "restore", str(file))
    assert done.returncode == 0, done.stderr
    assert "everything holds" in done.stdout
    assert [row.hash for row in rows(other)] == [row.hash for row in rows(life)]
    assert channels(other) == channels(life)
    assert links_agree(other)
    assert asked(other, "verify")["holds"]
    assert "is not empty" in complaint(kaizend(other, "restore", str(file)))
    assert kaizend(other, "rollback", "--reason", "it works").returncode == 0


@pytest.mark.parametrize("spoil", [
    lambda file: file.write_text("no backup"),
    lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    lambda file: file.write_bytes(file.read_bytes().replace(b'"hidden_size": 64', b'"hidden_size": 65', 1)),
])
def test_a_backup_that_does_not_verify_is_not_restored(life: Path, tmp_path: Path, spoil) -> None:
    file = tmp_path / "kaizend.tar"
    kaizend(life, "backup", str(file))
    spoil(file)
    shutil.rmtree(life / "var")
    before = listing(life)
    complaint(kaizend(life, "restore", str(file)))
    assert listing(life) == before
