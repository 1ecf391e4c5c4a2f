"""The sandbox as the program's users meet it: what `kaizend check` says, and a start that is refused without it."""

import json
from pathlib import Path

from watching import complaint, kaizend


def require_what_nobody_has(folder: Path) -> None:
    """A folder whose daemon starts its own workers: what a worker unit holds, its workers say."""
    config = folder / "kaizend.toml"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if "nursery" not in line))
    bounds = folder / "bounds.toml"
    bounds.write_text(bounds.read_text() + '\n[sandbox]\nrequired = true\nuser = "no such user"\n')


def test_check_says_what_holds_on_this_host(fresh):
    done = kaizend(fresh, "check", "--json")
    found = [each for each in json.loads(done.stdout)["findings"] if each["what"] == "sandbox"]
    parts = [each["text"].partition(":")[0] for each in found]
    assert parts == ["files", "network", "signals", "processes", "user", "memory", "disk", "vault out of reach"]
    assert all(each["ok"] for each in found)                # a part that is missing is said, not held against the host
    assert done.returncode == 0
    assert "sandbox          vault out of reach: " in kaizend(fresh, "check").stdout


def test_a_host_without_a_part_that_the_bounds_require_is_refused(fresh):
    require_what_nobody_has(fresh)
    done = kaizend(fresh, "check", "--json")
    (user,) = [each for each in json.loads(done.stdout)["findings"] if each["text"].startswith("user: ")]
    assert (done.returncode, user["ok"]) == (2, False)
    assert "NOT no such user" in user["text"]
    said = complaint(kaizend(fresh, "run", "--cycles", "1"), 78)
    assert "sandbox.required: this host does not hold user (NOT no such user" in said


def test_bounds_show_names_what_a_worker_may_use(fresh):
    shown = kaizend(fresh, "bounds", "show").stdout
    for name in ("resources.worker_memory_gib", "resources.scratch_gib", "resources.worker_processes"):
        assert name in shown
    assert "sandbox.required" in shown
