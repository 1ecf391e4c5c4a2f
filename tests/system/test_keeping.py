"""What carries a folder through its life: init and check, score, export, gc, backup and restore."""

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from miniature import ROOT, environment
from watching import asked, channels, complaint, kaizend, links_agree, listing, rows, serving, stop

from daemon.keeping import beside
from daemon.lock import at_rest

Spoil = Callable[[Path], object]
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


def test_check_and_the_first_start_refuse_a_verifier_that_cannot_be_trusted(fresh: Path) -> None:
    assert set(findings(fresh, "verifier").values()) == {True}
    (fresh / "words.jsonl").write_text("".join(f'{{"prompt": "q{i}", "answer": "word {i}"}}\n' for i in range(90)))
    with (fresh / "kaizend.toml").open("a") as config:
        config.write('\n[[tasks]]\nname = "words"\nverifier = "numeric"\nrole = "target"\nvault_items = 8\n'
                     'source = {kind = "jsonl", path = "words.jsonl"}\n')
    refused = [text for text, ok in findings(fresh, "verifier").items() if not ok]
    assert len(refused) == 1 and refused[0].startswith("task words: the verifier numeric cannot be trusted: item ")
    assert refused[0].split(": item")[0] in complaint(kaizend(fresh, "run", "--cycles", "1"))


def test_check_tells_of_a_stage_that_the_bounds_refuse(fresh: Path) -> None:
    text = (fresh / "kaizend.toml").read_text()
    assert findings(fresh, "stage") == {}
    (fresh / "kaizend.toml").write_text(text.replace("[pipeline]\n", '[pipeline]\nstages = ["sft", "dpo"]\n', 1))
    assert findings(fresh, "stage") == {"dpo: pipeline.stages in bounds.toml does not allow it": False}


def test_check_tells_of_a_protected_module_that_is_not_there(fresh: Path) -> None:
    assert findings(fresh, "protected") == {}
    with (fresh / "bounds.toml").open("a") as bounds:
        bounds.write('\n[code]\nmodules = ["safety", "state", "loops/cycles.py"]\n')
    told = "loops/cycles.py: code.modules in bounds.toml names it, and no source file is there"
    assert findings(fresh, "protected") == {told: False}


def test_check_tells_of_operators_that_the_bounds_refuse_and_of_too_many_parents(fresh: Path) -> None:
    assert findings(fresh, "operator") == {}
    text, allowed = (fresh / "kaizend.toml").read_text(), 'operators = ["task_arithmetic", "keep"]\nmax_parents = 1\n'
    (fresh / "bounds.toml").write_text((fresh / "bounds.toml").read_text() + "\n[search]\n" + allowed)
    refused, many = "{}: search.operators in bounds.toml does not allow it", "2 parents: search.max_parents in "
    for wanted, names in (
        ('operators = ["task_arithmetic", "ties"]', ["ties"]), ('search = "m2n2"', ["crossover"]),
        ('space = "data_flow"', ["path"]), ('space = "both"', ["path"]),
    ):
        (fresh / "kaizend.toml").write_text(text.replace("[architecture]", f"[architecture]\n{wanted}", 1))
        told = {f"{many}bounds.toml allows 1"} if "m2n2" not in wanted and "data_flow" not in wanted else set()
        assert findings(fresh, "operator") == dict.fromkeys({*map(refused.format, names), *told}, False)


def test_check_tries_out_the_features_that_packages_bring(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, info = tmp_path / "site", tmp_path / "site" / "manners-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: manners\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[kaizend.features]\ncourteous = manners:courteous\n")
    monkeypatch.syspath_prepend(package)
    path = {"PYTHONPATH": f"{ROOT}:{package}"}
    with (fresh / "kaizend.toml").open("a") as config:
        config.write('\n[reward]\nfeatures = ["places", "courteous"]\n')
    known = "courteous of manners 1.2"
    assert findings(fresh, "feature", **path) == {f"{known}: reward.features in bounds.toml does not allow it": False}
    with (fresh / "bounds.toml").open("a") as bounds:
        bounds.write('\n[reward]\nfeatures = ["places", "courteous"]\n')
    unfit = f"{known}: ValueError: feature courteous gave 2, which is no number from 0 to 1"
    for phi, said in (("0.5", {known: True}), ("2", {unfit: False})):
        (package / "manners.py").write_text(
            "from loops.reward.features import Feature, FeatureClass\n"
            f"courteous = Feature('courteous', FeatureClass.ONE, lambda *given: {phi})\n")
        assert findings(fresh, "feature", **path) == said


def findings(folder: Path, what: str, **more: str) -> dict[str, bool]:
    """What `kaizend check` says of one thing, and whether it is well."""
    done = json.loads(kaizend(folder, "check", "--json", **more).stdout)
    return {found["text"]: found["ok"] for found in done["findings"] if found["what"] == what}


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


def test_an_export_takes_nothing_away_and_needs_a_folder_that_nobody_is_in(finished: Path, tmp_path: Path) -> None:
    notes, left = tmp_path / "out.partial" / "notes", beside(tmp_path / "out", "export") / "config.json"
    for file in (notes, left):
        file.parent.mkdir()
        file.write_text("mine")
    assert kaizend(finished, "export", "stable", str(tmp_path / "out")).returncode == 0
    assert notes.read_text() == "mine"
    assert not left.parent.exists()                                       # what a killed one had left
    empty = tmp_path / "empty"
    empty.mkdir()
    for place in (".", str(empty)):
        said = complaint(kaizend(empty, "export", "stable", place, "-c", str(finished)))
        assert "is the folder you are in" in said
    assert kaizend(empty, "export", "stable", "in/it", "-c", str(finished)).returncode == 0
    assert not list(tmp_path.rglob(".*.kaizend-*"))


def test_an_export_has_a_valid_bill_of_materials_and_comes_out_the_same_again(finished: Path, tmp_path: Path) -> None:
    once, again = (tmp_path / name for name in ("once", "again"))
    for folder in (once, again):
        assert kaizend(finished, "export", str(folder)).returncode == 0
    assert {file.name: file.read_bytes() for file in once.iterdir()} == {
        file.name: file.read_bytes() for file in again.iterdir()
    }
    text = (once / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    model = json.loads(text)["metadata"]["component"]
    assert model["version"] == channels(finished)["stable"]
    assert {part["name"]: part["hashes"][0]["content"] for part in model["components"]} == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in once.iterdir()
        if file.name != "bom.cdx.json"
    }


def test_gc_gives_up_only_what_nothing_needs(life: Path) -> None:
    before = listing(life)
    dry = kaizend(life, "gc")
    assert "can go: add --apply" in dry.stdout
    assert listing(life) == before
    done = kaizend(life, "gc", "--apply")
    told = [line.removeprefix("goes") for line in dry.stdout.splitlines() if line.startswith("goes")]
    assert [line.removeprefix("gone") for line in done.stdout.splitlines()[:-1]] == told
    assert len(listing(life)) < len(before)
    assert asked(life, "verify")["holds"]
    assert kaizend(life, "gc").stdout.splitlines()[-1] == "0 artefacts, 0 bytes can go"
    assert kaizend(life, "gc", "--apply").stdout == "0 artefacts, 0 bytes can go\n"
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


def test_what_a_kill_left_beside_a_finished_backup_is_cleared_by_the_next_try(life: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "daemon", "backup", "kaizend.tar"], cwd=life,
        env=environment() | {"KAIZEND_FAILPOINT": "backup.renamed=kill"}, check=False, capture_output=True,
    )
    unfinished = beside(life / "kaizend.tar", "backup")
    assert (life / "kaizend.tar").is_file()
    assert unfinished.is_dir()
    assert "a backup never overwrites" in complaint(kaizend(life, "backup", "kaizend.tar"))
    assert (life / "kaizend.tar").is_file()
    assert not unfinished.exists()
    assert kaizend(life, "restore", "kaizend.tar", "--drill").returncode == 0


def test_backups_of_a_daemon_at_work_are_each_one_moment_of_it(fresh: Path, tmp_path: Path) -> None:
    """Cycles, the gate and gc at work: every drill holds, and what is restored is a beginning of what followed."""
    with serving(fresh, "--cycles", "4") as process:
        files, refused = [], []
        while process.poll() is None:
            files.append(tmp_path / f"{len(files)}.tar")
            done = kaizend(fresh, "backup", str(files[-1]), "--drill")
            assert done.returncode == 0, done.stderr + done.stdout
            assert "everything holds" in done.stdout and "can be restored; nothing was kept of it" in done.stdout
            refused.append(kaizend(fresh, "gc", "--apply"))
        assert process.wait(20) == 0
    assert "is already running" in complaint(refused[0])
    assert all("is already running" in complaint(done) for done in refused if done.returncode)    # or it has let go
    assert sorted(tmp_path.glob("*.tar*")) == sorted(files) and len(files) > 2
    story, lengths = [row.hash for row in rows(fresh)], set()
    for number in (0, len(files) // 2, len(files) - 1):
        other = tmp_path / f"other-{number}"
        other.mkdir()
        for name in ("kaizend.toml", "bounds.toml"):
            shutil.copy(fresh / name, other / name)
        assert kaizend(other, "restore", str(files[number])).returncode == 0
        restored = [row.hash for row in rows(other)]
        assert restored == story[: len(restored)]
        lengths.add(len(restored))
    assert len(lengths) > 1                                               # moments that differ
    shutil.copytree(fresh / "models", other / "models", dirs_exist_ok=True)
    assert kaizend(other, "run", "--cycles", "1").returncode == 0         # the copy is a life like any other
    assert asked(other, "verify")["holds"]


def test_a_restore_never_touches_a_state_folder_that_is_there(life: Path, tmp_path: Path) -> None:
    file = tmp_path / "kaizend.tar"
    assert kaizend(life, "backup", str(file)).returncode == 0
    (life / "var" / "STOP").touch()
    before = channels(life)
    with serving(life) as process:
        assert "kaizend is running on" in complaint(kaizend(life, "restore", str(file)))
        assert kaizend(life, "restore", str(file), "--drill").returncode == 0
        stop(process, 10)
    assert "is not empty" in complaint(kaizend(life, "restore", str(file)))
    assert channels(life) == before and asked(life, "verify")["holds"]


def test_gc_and_a_backup_keep_each_other_waiting(life: Path, tmp_path: Path) -> None:
    store = life / "var" / "artifacts"
    with at_rest(store, alone=False):                                     # as a backup does
        assert "in use by a backup" in complaint(kaizend(life, "gc", "--apply"))
        assert kaizend(life, "backup", str(tmp_path / "a.tar")).returncode == 0
    with at_rest(store, alone=True):                                      # as gc does
        assert "try again" in complaint(kaizend(life, "backup", str(tmp_path / "b.tar")))
    beside(tmp_path / "b.tar", "backup").mkdir()
    with at_rest(beside(tmp_path / "b.tar", "backup"), alone=True):       # another backup to the same file
        assert "try again" in complaint(kaizend(life, "backup", str(tmp_path / "b.tar")))
    assert not (tmp_path / "b.tar").exists()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", body: bytes = b"x") -> Spoil:
    """Adds a member to a backup that no backup has."""
    def spoil(file: Path) -> None:
        with tarfile.open(file, "a") as tar:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size, info.mode = kind, link, len(body), 0o6777
            tar.addfile(info, io.BytesIO(body))
    return spoil


DIGEST = "ab" * 32


@pytest.mark.parametrize("spoil", [
    member("../escaped"), member("/tmp/kaizend-escaped"), member(f"artifacts/ab/{DIGEST}/../../../../escaped"),
    member("stable", tarfile.SYMTYPE, "/etc"), member(f"artifacts/ab/{DIGEST}", tarfile.SYMTYPE, "../.."),
    member(f"artifacts/ab/{DIGEST}/x", tarfile.LNKTYPE, "kaizend.db"), member("kaizend.db"),
    member(f"artifacts/ab/{DIGEST}/x", tarfile.CHRTYPE), member(f"artifacts/ab/{DIGEST}/x", tarfile.FIFOTYPE),
    member("artifacts/ab/short/x"), member("lock"), member("files/a/b"), member("files/../x"),
])
def test_a_backup_with_anything_else_in_it_is_not_restored(life: Path, tmp_path: Path, spoil: Spoil) -> None:
    file = tmp_path / "kaizend.tar"
    kaizend(life, "backup", str(file))
    spoil(file)
    shutil.rmtree(life / "var")
    before = listing(tmp_path)
    assert "not a backup of kaizend" in complaint(kaizend(life, "restore", str(file)))
    assert "not a backup of kaizend" in complaint(kaizend(life, "restore", str(file), "--drill"))
    assert listing(tmp_path) == before
    assert not Path("/tmp/kaizend-escaped").exists()


def test_what_is_restored_has_the_modes_of_a_state_folder_whatever_the_backup_says(life: Path, tmp_path: Path) -> None:
    file, loose = tmp_path / "kaizend.tar", tmp_path / "loose.tar"
    kaizend(life, "backup", str(file))
    with tarfile.open(file) as old, tarfile.open(loose, "w") as tar:
        for info in old.getmembers():
            info.mode = 0o6777
            tar.addfile(info, old.extractfile(info) if info.isfile() else None)
    modes = {path.relative_to(life): path.stat().st_mode for path in kept_of(life)}
    shutil.rmtree(life / "var")
    assert kaizend(life, "restore", str(loose)).returncode == 0
    assert {path.relative_to(life): path.stat().st_mode for path in kept_of(life)} == modes


def kept_of(folder: Path) -> list[Path]:
    var = folder / "var"
    return [var / "signing.key", var / "vault", *(var / "vault").rglob("*"), *(var / "artifacts").rglob("*")]


def test_a_drill_of_a_backup_that_does_not_verify_says_so_and_leaves_nothing(life: Path, tmp_path: Path) -> None:
    file = tmp_path / "kaizend.tar"
    kaizend(life, "backup", str(file))
    file.write_bytes(file.read_bytes().replace(b'"hidden_size": 64', b'"hidden_size": 65', 1))
    before = listing(tmp_path)
    done = kaizend(life, "restore", str(file), "--drill")
    assert (done.returncode, done.stderr) == (1, "")
    assert "PROBLEM" in done.stdout and "does not verify" in done.stdout.splitlines()[-1]
    assert listing(tmp_path) == before


@pytest.mark.parametrize("words", [(), ("--drill",)])
def test_a_restore_from_where_no_file_is_makes_no_folder(fresh: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    before = listing(tmp_path)
    for place in (tmp_path / "not" / "there" / "kaizend.tar", tmp_path):
        assert "is not a file" in complaint(kaizend(fresh, "restore", str(place), *words))
    assert listing(tmp_path) == before


@pytest.mark.parametrize("spoil", [
    lambda file: file.write_text("no backup"),
    lambda file: file.write_bytes(gzip.compress(file.read_bytes())),
    lambda file: file.write_bytes(b""),
    lambda file: file.write_bytes(file.read_bytes()[:-(file.stat().st_size // 3)]),
    lambda file: file.write_bytes(file.read_bytes()[: 512 * 3]),
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
