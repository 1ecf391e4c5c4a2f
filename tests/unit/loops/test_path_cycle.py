"""A path through layers from proposal to promotion, with real models and real jobs, and what the daemon says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from court import Court
from tiny import tiny_model
from transformers import AutoModelForCausalLM
from zoo import WORDS

from daemon.reports import ancestry
from daemon.words import change_in_words
from loops.architecture.loop import ArchitectureLoop
from loops.architecture.settings import ArchitectureSettings, Space
from loops.cycle import House, run_cycle
from loops.work.build import build
from loops.work.screen import screen
from safety.bounds import Bounds
from safety.drift import measure
from safety.layers import depth_of
from safety.yardstick.jobs import compare
from safety.yardstick.scoring import load_model
from state.jobs import Desk, JobSpec
from state.reading import Reading
from state.records import Budget, Channel, Entry, Event, JsonObject, Verdict

pytest_plugins = ("zoo",)
SETTINGS = ArchitectureSettings(
    space=Space.DATA_FLOW, path_repeats=1, path_flips=1.5, path_patience=99, fitness_items=64, fresh_items=160,
    batch_items=32, score_batch=32,
)


def spoiled(expert: Path, folder: Path) -> Path:
    """The expert with a layer in its middle that learnt nothing: better without it."""
    noise = AutoModelForCausalLM.from_pretrained(tiny_model(folder / "noise", WORDS, seed=7))
    with torch.no_grad():
        for weight in noise.model.layers.parameters():
            weight.mul_(12.0 if weight.ndim == 2 else 1.0)
    noise.save_pretrained(folder / "noise")
    change = {"kind": "path", "parents": ["one", "noise"], "layers": [[0, 0], [1, 0], [0, 1]], "scales": [1.0] * 3,
              "places": [0, 1, 2]}
    (folder / "desk").mkdir()
    desk = Desk(folder / "desk", {"model:one": expert, "model:noise": folder / "noise"}, cache={})
    return Path(build(JobSpec("build", {}, {"change": change}), desk).outputs["model"])


def test_a_path_is_screened_built_promoted_and_loaded_by_plain_transformers(
    zoo: dict[str, Path], task: JsonObject, seal: Path, tmp_path: Path
) -> None:
    court = Court(tmp_path, {"screen": screen, "build": build, "compare": compare, "measure": measure})
    start = court.registry.add_copy(spoiled(zoo["one"], tmp_path), "model")
    court.ledger.append(Entry(Event.GENESIS, "a start", result=start), move=dict.fromkeys(Channel, start))
    house = House(court.ledger, court.runner, Bounds, "code", 7)
    inner: Any = None
    loop = ArchitectureLoop(SETTINGS, [task], inner, start, (start,), court.registry.add_copy(seal, "seal"),
                            depth=lambda digest: depth_of(court.registry.path(digest)))
    for ordinal in range(30):
        outcome = run_cycle(house, loop, None, ordinal, start, start, Budget(1e6, 10**9, 100))
        assert outcome.verdict in (Verdict.PROMOTED, Verdict.REJECTED), outcome.reason
        if outcome.verdict is Verdict.PROMOTED:
            break
    working = str(court.ledger.channel(Channel.WORKING))
    assert working == outcome.result != start
    row = list(court.ledger.rows(event=Event.CLOSED))[-1]
    assert row.change["kind"] == "path"
    assert [0, 1] not in row.change["layers"]                      # the layer that learnt nothing is gone

    folder = court.registry.path(working)
    model, told = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert model.config.num_hidden_layers == len(row.change["layers"]) == depth_of(folder)
    assert not list(folder.glob("*.py"))
    ids = torch.tensor([[3, 4, 5, 6]])
    assert torch.equal(model.eval()(input_ids=ids).logits, load_model(folder, "cpu").model(input_ids=ids).logits)

    depth = len(row.change["layers"])
    assert change_in_words(row.change) == f"path of {depth} layers through 1 model"
    with Reading(tmp_path / "kaizend.db") as reading:
        made, *_ = ancestry(reading, working)
    assert (made.model, made.parents) == (working, (start,))
    assert made.made == f"row {row.id}: path of {depth} layers through 1 model"
    assert len(made.path) > 1 and all(line in (folder / "README.md").read_text() for line in made.path)

    desk = Desk(tmp_path, {"base": court.registry.path(start), "result": folder, "seal": seal})
    drift = measure(JobSpec("measure", {}, {"tasks": [task], "probe_items": 8}), desk).values["drift"]
    assert drift["relative_frobenius"] < 1.0                        # layers that were there, scaled where they write
    assert drift["kl_mean"] > 0.0
