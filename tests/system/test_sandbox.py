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


def reads_a_file(folder: Path, path: str) -> None:
    """The folder with one more task, whose items are those of a file."""
    config = folder / "kaizend.toml"
    config.write_text(
        config.read_text() + '\n[[tasks]]\nname = "told"\nrole = "guard"\nguard_items = 300\n'
        f'source = {{ kind = "jsonl", path = "{path}" }}\n'
    )


def said_of_the_task(folder: Path) -> tuple[bool, str]:
    findings = json.loads(kaizend(folder, "check", "--json").stdout)["findings"]
    ((ok, text),) = [(each["ok"], each["text"]) for each in findings if each["what"] == "task"]
    return ok, text


def test_a_tasks_file_where_every_worker_reads_is_a_problem(fresh):
    reads_a_file(fresh, "told.jsonl")
    lines = (json.dumps({"prompt": f"say {i}", "answer": str(i)}) for i in range(400))
    (fresh / "told.jsonl").write_text("\n".join(lines))
    assert said_of_the_task(fresh) == (True, f"told: 400 items in {fresh / 'told.jsonl'}")
    exposed = Path(json.__file__)
    (fresh / "kaizend.toml").write_text((fresh / "kaizend.toml").read_text().replace("told.jsonl", str(exposed)))
    ok, text = said_of_the_task(fresh)
    assert not ok
    assert "which workers read: put it elsewhere" in text


def test_a_life_with_a_task_of_a_file_goes_on_when_the_file_is_gone_and_scores_the_same_items(fresh):
    reads_a_file(fresh, "told.jsonl")
    maths = (fresh / "models" / "data" / "expert_maths.jsonl").read_text().splitlines()
    rows = {row["prompt"] + " " + row["prompt"].split()[-1]: row["answer"] for row in map(json.loads, maths)}
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in rows.items()]
    (fresh / "told.jsonl").write_text("\n".join(lines[:600]))
    asked = ("score", "models/expert-maths", "--task", "told", "-n", "60", "--json")
    before = kaizend(fresh, *asked)
    assert before.returncode == 0, before.stderr
    done = kaizend(fresh, "run", "--cycles", "1")
    assert done.returncode == 0, done.stderr
    (fresh / "told.jsonl").unlink()
    again = kaizend(fresh, "run", "--cycles", "1")
    assert again.returncode == 0, again.stderr
    (line,) = [json.loads(line) for line in again.stderr.splitlines() if '"file changed"' in line]
    assert "its items stay those that this state folder began with" in line["reason"]
    ok, text = said_of_the_task(fresh)
    assert ok and "No such file" in text
    after = kaizend(fresh, *asked)
    assert (after.returncode, after.stdout) == (0, before.stdout)


def test_bounds_show_names_what_a_worker_may_use(fresh):
    shown = kaizend(fresh, "bounds", "show").stdout
    for name in ("resources.worker_memory_gib", "resources.scratch_gib", "resources.worker_processes"):
        assert name in shown
    assert "sandbox.required" in shown
