"""An adversary that proposes: what it cannot see it cannot use, and what it could see would let it win.

Nothing it proposes is ever better, so every release is false. The arithmetic is the gate's own, and where a task reads
a file, the sealing is the product's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from safety.gate import Decision, Rules, decide
from safety.yardstick.items import TaskSpec
from safety.yardstick.sealed import load_vault, seal_tasks
from safety.yardstick.tasks import Seal, pinned, read_jsonl, unplaced
from state.jobs import Desk, JobSpec
from studies.barrier import CLOSED, OPEN, false_releases
from studies.lives import Pair, differences, refuted_after, releases

LIVES, NOMINATIONS, VAULT, ALPHA = 60, 200, 1_000, 0.05
Record = Callable[[str, object], None]


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_behind_the_barrier_false_releases_stay_under_alpha(name: str, record_property: Record) -> None:
    count = false_releases(CLOSED[name], LIVES, NOMINATIONS, VAULT, ALPHA, seed=1)
    record_property("lives with a false release", count)
    assert count <= ALPHA * LIVES


def test_with_the_barrier_open_it_climbs_the_vault_into_a_release(record_property: Record) -> None:
    count = false_releases(OPEN["scores on the vault"], LIVES, NOMINATIONS, VAULT, ALPHA, seed=1)
    record_property("lives with a false release", count)
    assert count > 0.25 * LIVES


def released_by_heart(known: set[str], vault: list[str], k: int, rng: np.random.Generator) -> bool:
    """Whether the gate releases a model that guesses, as the stable one does, but answers by heart what it has read."""
    old = rng.random(len(vault)) < 0.5
    new = np.array([item in known for item in vault]) | old
    found = decide(Rules(k, ALPHA, 0.0, 0.03, {}), [(new.astype(float) - old).tolist()], {})
    return found.decision is Decision.RELEASE


def test_who_learns_by_heart_whatever_a_job_can_read_of_a_file_is_released_only_where_it_reads_the_file(
    tmp_path: Path, record_property: Record
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"question {i}", "answer": str(i)}) + "\n" for i in range(600)))
    counts = {"the pool": 0, "the file": 0}
    for life in range(LIVES):
        cut = pinned(TaskSpec("told", "target", {"kind": "jsonl", "path": str(file), "cut": life}, vault_items=200))
        folder = tmp_path / str(life)
        folder.mkdir()
        made = seal_tasks(JobSpec("seal", {}, {"tasks": [cut.to_json()]}), Desk(folder, {})).outputs
        vault = [item.id for item in load_vault(made["vault"], cut)]
        reads = {
            "the pool": {item.id for item in Seal.of({"seal": made["seal"]}).pool(unplaced(cut))},
            "the file": {item.id for item in read_jsonl(file)},
        }
        assert (len(reads["the pool"]), len(reads["the file"])) == (400, 600)
        for what, known in reads.items():
            rng = np.random.default_rng([11, life])
            counts[what] += any(released_by_heart(known, vault, k, rng) for k in range(1, 6))
    for what, count in counts.items():
        record_property(f"lives with a false release, reading {what}", count)
    assert counts["the pool"] <= ALPHA * LIVES
    assert counts["the file"] == LIVES


@pytest.mark.long
@pytest.mark.parametrize("name", ["verdicts", "the gate's time"])
def test_the_time_or_the_verdicts_alone_were_not_enough_for_it(name: str, record_property: Record) -> None:
    """A clock beside the gate is a channel that is not closed: this says how little a climber by it gets."""
    count = false_releases(OPEN[name], LIVES, NOMINATIONS, VAULT, ALPHA, seed=1)
    record_property("lives with a false release", count)
    assert count <= ALPHA * LIVES


def test_the_counts_decide_as_the_gate_does_on_items() -> None:
    """The simulation's shortcut against the gate itself, and its time against the items that the gate used."""
    rng = np.random.default_rng(3)
    decided = set()
    for _ in range(60):
        wins = int(rng.integers(0, 60))
        pair = Pair(np.array([[100, wins], [int(rng.integers(0, 60)), 100]]))
        seed = int(rng.integers(2**32))
        released = releases(pair, 1, 0.3, np.random.default_rng(seed))
        again = np.random.default_rng(seed)
        discordant = again.permutation(np.repeat(np.array([1, -1], dtype=np.int8), [pair.wins, pair.losses]))
        signs = np.zeros(pair.items, dtype=np.int8)
        signs[np.sort(again.choice(pair.items, len(discordant), replace=False))] = discordant
        found = decide(Rules(1, 0.3, 0.0, 0.03, {}), [signs.astype(float).tolist()], {})
        decided.add(found.decision)
        assert released == (found.decision is Decision.RELEASE)
        if found.decision is Decision.FUTILE:
            assert refuted_after(signs) == found.n
    assert len(decided) > 1
    assert sorted(differences(pair, rng).tolist()) == [-1] * pair.losses + [0] * 200 + [1] * pair.wins
