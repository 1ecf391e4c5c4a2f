"""Job "gate" on real models and real seals, alone and through a whole nomination."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from court import Court, write_lines
from tiny import teach, tiny_model

from safety.bounds import Bounds
from safety.drift import measure
from safety.gate import recompute
from safety.release import nominate
from safety.serving import serve
from safety.yardstick import gating
from safety.yardstick.gating import gate, items_digest, shuffled
from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.sealed import load_vault, seal_tasks
from state.jobs import Desk, JobSpec
from state.records import Channel, Verdict

NUMBERS = range(10)
WORDS = ["add", "copy", *map(str, range(20))]
ADD = [(f"add {a} {b}", str(a + b)) for a in NUMBERS for b in NUMBERS]
COPY = [(f"copy {a} {b}", f"{a} {b}") for a in NUMBERS for b in NUMBERS]


@dataclass
class World:
    """Two models and the seals. `better` can add and copy, `plain` copies only."""

    plain: Path
    better: Path
    tasks: list[TaskSpec]
    seals: dict[str, Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    for name, pairs in (("maths", ADD), ("copying", COPY)):
        write_lines(folder / f"{name}.jsonl", pairs, lambda prompt, answer: {"prompt": prompt, "answer": answer})
    tasks = [
        TaskSpec("maths", "target", {"kind": "jsonl", "path": str(folder / "maths.jsonl")}, vault_items=60),
        TaskSpec("copying", "guard", {"kind": "jsonl", "path": str(folder / "copying.jsonl")}, guard_items=60),
    ]
    (folder / "seal").mkdir()
    sealed = seal_tasks(JobSpec("seal", {}, {"tasks": [task.to_json() for task in tasks]}), Desk(folder / "seal", {}))
    start = tiny_model(folder / "start", WORDS, width=48)
    plain = teach(start, COPY, folder / "plain", steps=80, rate=1e-2)
    return World(plain, teach(plain, COPY + ADD, folder / "better", steps=120, rate=1e-2), tasks, dict(sealed.outputs))


def run(world: World, new: str, old: str, folder: Path, tasks: list[TaskSpec] | None = None, **params: Any) -> Any:
    folder.mkdir()
    inputs = {"model:new": getattr(world, new), "model:old": getattr(world, old),
              "vault": world.seals["vault"], "guard": world.seals["guard"]}
    values = {"k": 1, "alpha": 0.05, "d0": 0.0, "futility": 0.05, "margins": {"copying": 0.1}, "batch": 8,
              "tasks": [task.to_json() for task in tasks or world.tasks], **params}
    digests = {"model:new": new, "model:old": old, "vault": "v", "guard": "g"}
    return gate(JobSpec("gate", digests, values), Desk(folder, inputs))


def test_a_better_model_that_keeps_its_guards_is_released_and_recomputes(world: World, tmp_path: Path) -> None:
    produced = run(world, "better", "plain", tmp_path / "g")
    values = produced.values
    assert values["decision"] == "release"
    scores = json.loads(produced.outputs["scores"].read_text())
    assert recompute(values, scores)
    assert values["items_digest"] == items_digest(scores)
    assert set(scores["targets"]["items"]) <= {item.id for item in load_vault(world.seals["vault"], "maths")}
    assert values["tasks"]["maths"]["new"] > values["tasks"]["maths"]["old"]


def test_it_stops_scoring_once_it_is_decided(world: World, tmp_path: Path) -> None:
    produced = run(world, "better", "plain", tmp_path / "g", batch=4)
    scores = json.loads(produced.outputs["scores"].read_text())
    assert produced.values["n"] <= len(scores["targets"]["items"]) < 60
    worse = run(world, "plain", "better", tmp_path / "w", batch=4)
    assert worse.values["decision"] == "futile"
    assert worse.values["guards"] == {}
    assert worse.items < produced.items


def test_the_same_model_is_never_better_than_itself(world: World, tmp_path: Path) -> None:
    assert run(world, "plain", "plain", tmp_path / "g").values["decision"] == "undecided"


def test_the_size_of_the_batch_does_not_change_the_decision(world: World, tmp_path: Path) -> None:
    found = [run(world, "better", "plain", tmp_path / str(b), batch=b).values for b in (3, 64)]
    assert found[0]["e"] == found[1]["e"]
    assert found[0]["n"] == found[1]["n"]


def test_the_order_of_the_items_depends_on_the_vault_and_both_models_only(world: World) -> None:
    task = world.tasks[0]
    questions = [(task, Item.of(f"q {i}", "a")) for i in range(30)]
    first = shuffled(questions, "v", "n", "o")
    assert first == shuffled(questions[::-1], "v", "n", "o")
    assert all(first != shuffled(questions, *parts) for parts in (("w", "n", "o"), ("v", "x", "o"), ("v", "n", "x")))


def test_a_model_agrees_with_itself_under_another_batching(world: World, tmp_path: Path) -> None:
    values = run(world, "plain", "plain", tmp_path / "aa", aa=True).values
    assert values == {"aa": True, "items": 120, "disagreements": 0, "noise": 0.0}


def test_a_verifier_that_pays_for_junk_stops_the_gate_before_any_model_is_loaded(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gating, "make_verifier", lambda task: lambda item, text: int(item.answer in text))
    monkeypatch.setattr(gating, "load_model", None)
    produced = run(world, "better", "plain", tmp_path / "g")
    assert produced.values["decision"] == "canary_failed"
    assert "maths" in produced.values["canaries"]
    assert not produced.outputs


def test_a_target_without_vault_items_or_a_guard_without_items_is_an_error(world: World, tmp_path: Path) -> None:
    no_vault = [replace(world.tasks[0], vault_items=0), world.tasks[1]]
    with pytest.raises(ValueError, match="vault"):
        run(world, "better", "plain", tmp_path / "a", tasks=no_vault)
    with pytest.raises(ValueError, match="guard task gone"):
        run(world, "better", "plain", tmp_path / "b", margins={"gone": 0.1})


@pytest.fixture
def court(world: World, tmp_path: Path) -> Iterator[Court]:
    court = Court(tmp_path, {"gate": gate, "measure": measure, "serve": serve}, tasks=world.tasks)
    wide = replace(Bounds().drift.stable, relative_frobenius=1e3, tensor_frobenius=1e3, spectral=1e3,
                   embedding_norm=1e3, kl_mean=1e2, kl_p99=1e2, entropy_shift=10.0, length_shift=10.0)
    court.bounds = replace(
        Bounds(), guards=replace(Bounds().guards, margin=0.1),
        drift=replace(Bounds().drift, stable=wide, reference=wide),
        rate=replace(Bounds().rate, dwell_seconds=0.0),
    )
    copies = {name: shutil.copytree(path, tmp_path / "copies" / name) for name, path in world.seals.items()}
    court.begin(court.registry.add_copy(world.plain, "model"), copies["vault"], copies["guard"], copies["seal"])
    yield court
    court.ledger.database.close()


def test_a_whole_nomination_with_real_jobs_moves_stable_to_the_better_model(world: World, court: Court) -> None:
    better = court.registry.add_copy(world.better, "model")
    court.move_working(better)
    row = nominate(replace(court.desk, batch=16))
    assert row is not None
    assert row.verdict == Verdict.PROMOTED, row.reason
    assert court.ledger.channel(Channel.STABLE) == better
    scores = json.loads(court.registry.path(row.evidence["scores"]).read_text())
    assert recompute(row.evidence, scores)
    assert row.evidence["drift_stable"]["kl_mean"] > 0


def test_a_worse_model_stays_out_and_tight_drift_refuses_a_better_one(
    world: World, court: Court, tmp_path: Path
) -> None:
    worse = court.registry.add_copy(tiny_model(tmp_path / "noise", WORDS, seed=9, width=48), "model")
    court.move_working(worse)
    row = nominate(court.desk)
    assert row is not None
    assert row.verdict == Verdict.REJECTED
    court.bounds = replace(court.bounds, drift=Bounds.from_json({"drift": {"stable": {"kl_mean": 1e-6}}}).drift)
    court.move_working(court.registry.add_copy(world.better, "model"))
    row = nominate(court.desk)
    assert row is not None
    assert row.verdict == Verdict.REFUSED
    assert "drift." in row.reason
