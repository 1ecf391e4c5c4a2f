"""The job "segment" learns from a verifier alone, is a pure function of its spec, and carries runs on bit for bit."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from coaching import TASK, desk, hashes, make_classroom, segment_spec
from tiny import teach, tiny_model, tiny_tokenizer
from trl import GRPOTrainer

from loops.reward.levels import at_level
from loops.reward.monitor import inspect
from loops.work import reinforce
from loops.work.exercises import plain, set_exercises
from loops.work.reinforce import segment
from loops.work.watch import Diverged
from safety.yardstick.items import TaskError, TaskSpec
from safety.yardstick.tasks import Seal, draw
from state.jobs import Desk, JobSpec
from state.records import Split


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classroom(tmp_path_factory.mktemp("classroom"))


@pytest.fixture(scope="module")
def whole(classroom: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return segment(segment_spec(), desk(classroom, tmp_path_factory.mktemp("whole")))


def test_it_reports_every_step_and_q_before_and_after(whole: Any) -> None:
    values = whole.values
    for trace in ("proxy", "truth", "shaping_trace", "entropy"):
        assert len(values[trace]) == values["steps"] == 8
    assert len(values["q_before"]) == len(values["q_after"]) == 24
    assert values["groups"] == 24
    assert 0 < values["mixed_groups"] <= 24
    assert values["success"] == pytest.approx(sum(values["truth"]) / 8)
    assert values["evidence"]["referenced"] == values["evidence"]["groups"] > 0
    assert values["kl"] > 0
    assert values["stopped"] is None
    assert whole.items == 96
    json.dumps(values, allow_nan=False)


def test_the_same_spec_gives_the_same_bits_and_values(classroom: Path, whole: Any, tmp_path: Path) -> None:
    again = segment(segment_spec(), desk(classroom, tmp_path))
    assert again.values == whole.values
    for output in ("model", "checkpoint"):
        assert hashes(again.outputs[output]) == hashes(whole.outputs[output])


def test_arms_with_the_same_seed_are_asked_the_same_and_differ_by_the_shaping(
    classroom: Path, whole: Any, tmp_path: Path
) -> None:
    spec = segment_spec()
    spec.params["shaping"].update(weights={}, strength=0.0)          # type: ignore[index]
    control = segment(spec, desk(classroom, tmp_path))
    assert control.values["truth"][0] == whole.values["truth"][0]
    assert control.values["q_before"] == whole.values["q_before"]
    assert control.values["proxy"] == control.values["truth"]
    assert control.values["rank_correlation"] is None
    assert hashes(control.outputs["model"]) != hashes(whole.outputs["model"])


def test_without_references_there_is_no_q_and_no_evidence_from_answers(classroom: Path, tmp_path: Path) -> None:
    spec = segment_spec(steps=2)
    spec.params["references"] = False                                # type: ignore[index]
    values = segment(spec, desk(classroom, tmp_path)).values
    assert values["q_before"] == values["q_after"] == []
    assert values["evidence"]["referenced"] == 0
    assert values["evidence"]["groups"] == values["mixed_groups"]


def test_a_verifier_that_pays_for_junk_is_named(
    classroom: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert whole.values["canaries"] == []
    lenient = lambda task: lambda item, text: int(item.answer in text)        # noqa: E731
    monkeypatch.setattr("loops.work.exercises.make_verifier", lenient)
    found = segment(segment_spec(steps=1), desk(classroom, tmp_path)).values["canaries"]
    assert any("the answer and a suffix" in failure for failure in found)
    assert [alarm.name for alarm in inspect({"canaries": found}, [])] == ["canary"]


def test_a_second_verifier_is_asked_beside_the_first_and_changes_nothing(
    classroom: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert whole.values["disagreement"] is None
    monkeypatch.setattr("loops.work.exercises.second_verifier", lambda task: lambda item, text: 1)
    made = segment(segment_spec(), desk(classroom, tmp_path))
    assert made.values["disagreement"] >= 1 - made.values["success"] > 0
    assert {**made.values, "disagreement": None} == whole.values
    assert hashes(made.outputs["model"]) == hashes(whole.outputs["model"])


@pytest.mark.parametrize("adapter", [{"kind": "none"}, {"kind": "lora", "rank": 4, "alpha": 8.0}])
def test_a_later_segment_carries_moments_and_own_successes_on(
    classroom: Path, tmp_path: Path, adapter: dict[str, Any]
) -> None:
    first = segment(segment_spec(0, 3, adapter=adapter), desk(classroom, tmp_path / "first"))
    given = {"model": first.outputs["model"], "checkpoint": first.outputs["checkpoint"]}
    second = segment(segment_spec(3, 3, adapter=adapter), desk(classroom, tmp_path / "second", **given))
    assert second.values["q_before"] == pytest.approx(first.values["q_after"], abs=1e-5)
    states = [json.loads((made.outputs["checkpoint"] / "state.json").read_text()) for made in (first, second)]
    assert states[1]["step"] == 6
    assert states[1]["right"][:len(states[0]["right"])] == states[0]["right"]


@pytest.mark.parametrize("changes", [
    {}, {"beta": 0.05, "adapter": {"kind": "lora", "rank": 4, "alpha": 8.0}},
])
def test_one_that_pauses_and_goes_on_ends_with_the_bits_of_one_that_did_not(
    classroom: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    spec = segment_spec(**changes)
    undisturbed = segment(spec, desk(classroom, tmp_path / "undisturbed"))
    first = segment(replace(spec, params={**spec.params, "pause": 3}), desk(classroom, tmp_path / "first"))
    assert (first.values["steps"], first.values["cut"], first.values["stopped"]) == (3, 0, None)
    assert first.values["truth"] == undisturbed.values["truth"][:3]
    rest = segment(spec, desk(classroom, tmp_path / "rest", paused=first.outputs["checkpoint:paused"]))
    assert rest.values == undisturbed.values
    assert (first.items + rest.items, first.tokens + rest.tokens) == (undisturbed.items, undisturbed.tokens)
    for output in ("model", "checkpoint"):
        assert hashes(rest.outputs[output]) == hashes(undisturbed.outputs[output])
    assert "checkpoint:paused" not in rest.outputs


def test_one_that_broke_off_where_it_pauses_does_not_go_further(classroom: Path, tmp_path: Path) -> None:
    spec = segment_spec(save_steps=3)
    spec = replace(spec, params={**spec.params, "pause": 3})
    undisturbed = segment(spec, desk(classroom, tmp_path / "undisturbed"))
    disturbed = desk(classroom, tmp_path / "disturbed")

    def trip(done: float, note: str) -> None:
        if note == "step 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment(spec, replace(disturbed, progress=trip))
    again = segment(spec, disturbed)
    assert again.values == undisturbed.values
    for output in ("model", "checkpoint", "checkpoint:paused"):
        assert hashes(again.outputs[output]) == hashes(undisturbed.outputs[output])


def test_a_pause_of_another_segment_is_refused(classroom: Path, tmp_path: Path) -> None:
    spec = segment_spec()
    with pytest.raises(ValueError, match="cannot pause"):
        segment(replace(spec, params={**spec.params, "pause": 9}), desk(classroom, tmp_path / "late"))
    paused = segment(replace(spec, params={**spec.params, "pause": 3}), desk(classroom, tmp_path / "first"))
    given = {"paused": paused.outputs["checkpoint:paused"], "checkpoint": paused.outputs["checkpoint"]}
    with pytest.raises(ValueError, match="did not pause within"):
        segment(segment_spec(3, 8), desk(classroom, tmp_path / "later", **given))
    torn = paused.outputs["checkpoint:paused"]
    (torn / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="torn"):
        segment(spec, desk(classroom, tmp_path / "torn", paused=torn))


def test_no_question_is_sealed_and_none_is_in_the_probe(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(["one"])
    task = TaskSpec.from_json(TASK)
    sealed = frozenset(item.id for item in draw(task, Split.SEARCH, 3000, 1))
    made = set_exercises([task, TaskSpec.from_json(TASK | {"name": "again"})], Seal(sealed), tokenizer, 31, 3, 20, 4)
    asked = {question.item.id for question in made.questions}
    assert len(made.questions) == 31
    assert len(made.probe) == 20
    assert not asked & sealed
    assert not asked & {item.id for item in made.probe}
    with pytest.raises(TaskError, match="are needed"):
        set_exercises([task], Seal(sealed), tokenizer, 10**6, 3, 20, 4)


def test_replay_is_part_of_the_loss(classroom: Path, whole: Any, tmp_path: Path) -> None:
    without = segment(segment_spec(replay=0.0), desk(classroom, tmp_path))
    assert without.tokens < whole.tokens
    assert hashes(without.outputs["model"]) != hashes(whole.outputs["model"])


def test_it_runs_without_any_data_and_with_a_kl_term(classroom: Path, tmp_path: Path) -> None:
    bare = desk(classroom, tmp_path)
    for name in [name for name in bare.inputs if name.startswith("data:")]:
        del bare.inputs[name]                                        # type: ignore[attr-defined]
    assert segment(segment_spec(0, 2, beta=0.05), bare).values["steps"] == 2


def test_a_gradient_that_is_no_number_ends_the_job(
    classroom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = GRPOTrainer.compute_loss
    monkeypatch.setattr(
        GRPOTrainer, "compute_loss", lambda self, *rest, **more: honest(self, *rest, **more) * float("nan")
    )
    with pytest.raises(Diverged, match="at step 1"):
        segment(segment_spec(), desk(classroom, tmp_path))


@pytest.mark.parametrize("kind", ["none", "lora"])
def test_one_that_broke_off_ends_as_if_it_had_not_with_a_kl_term_too(
    classroom: Path, tmp_path: Path, kind: str
) -> None:
    adapter = {"kind": kind, "rank": 4, "alpha": 8.0}
    spec = segment_spec(0, 6, save_steps=2, beta=0.2, learning_rate=5e-3, adapter=adapter)
    undisturbed = segment(spec, desk(classroom, tmp_path / "undisturbed"))
    disturbed = desk(classroom, tmp_path / "disturbed")

    def trip(done: float, note: str) -> None:
        if note == "step 5":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        segment(spec, replace(disturbed, progress=trip))
    again = segment(spec, disturbed)
    assert again.values == undisturbed.values
    for output in ("model", "checkpoint"):
        assert hashes(again.outputs[output]) == hashes(undisturbed.outputs[output])


def test_a_segment_that_was_stopped_stays_stopped_when_it_is_run_again(
    classroom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reinforce, "reason_to_stop", lambda flat, *_: "enough" if len(flat) == 3 else None)
    first = segment(segment_spec(), desk(classroom, tmp_path))
    assert (first.values["steps"], first.values["stopped"]) == (3, "enough")
    kept = hashes(first.outputs["model"])
    monkeypatch.setattr(reinforce, "run_trainer", None)
    again = segment(segment_spec(), desk(classroom, tmp_path))
    assert again.values == first.values
    assert hashes(again.outputs["model"]) == kept


@pytest.mark.parametrize(("part", "changes"), [
    (0.99, {}), (0.6, {}), (0.25, {}), (0.9, {"temperature": 2.0, "replay": 0.0}), (0.4, {"temperature": 2.0}),
])
def test_a_capped_one_stays_under_its_cap_and_goes_the_same_way_until_then(
    classroom: Path, tmp_path: Path, part: float, changes: dict[str, Any]
) -> None:
    whole = segment(segment_spec(**changes), desk(classroom, tmp_path / "whole"))
    cap = int(part * whole.tokens)
    capped = segment(segment_spec(max_tokens=cap, **changes), desk(classroom, tmp_path / "capped"))
    steps = capped.values["steps"]
    assert 0 < capped.values["tokens"] == capped.tokens <= cap
    assert 0 < steps < 8
    assert capped.values["cut"] == 8 - steps
    assert capped.values["stopped"] == f"the {cap} tokens it may use do not suffice for another step"
    for trace in ("truth", "proxy", "entropy"):
        assert capped.values[trace] == whole.values[trace][:steps]
    assert capped.values["q_before"] == whole.values["q_before"]


def test_a_cap_that_is_never_reached_changes_nothing(classroom: Path, whole: Any, tmp_path: Path) -> None:
    capped = segment(segment_spec(max_tokens=10**6), desk(classroom, tmp_path))
    assert capped.values == whole.values
    assert capped.values["cut"] == 0
    assert hashes(capped.outputs["model"]) == hashes(whole.outputs["model"])


def test_a_capped_one_has_the_bits_of_one_that_stopped_there(
    classroom: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capped = segment(segment_spec(max_tokens=whole.tokens // 2), desk(classroom, tmp_path / "capped"))
    steps = capped.values["steps"]
    monkeypatch.setattr(reinforce, "reason_to_stop", lambda flat, *_: "enough" if len(flat) == steps else None)
    stopped = segment(segment_spec(), desk(classroom, tmp_path / "stopped"))
    for output in ("model", "checkpoint"):
        assert hashes(capped.outputs[output]) == hashes(stopped.outputs[output])


def test_a_capped_one_that_broke_off_ends_as_if_it_had_not(classroom: Path, whole: Any, tmp_path: Path) -> None:
    spec = segment_spec(max_tokens=int(0.9 * whole.tokens), save_steps=2)
    undisturbed = segment(spec, desk(classroom, tmp_path / "undisturbed"))
    last = undisturbed.values["steps"]
    disturbed = desk(classroom, tmp_path / "disturbed")
    for fatal in (f"step {last - 1}", f"step {last}"):

        def trip(done: float, note: str, fatal: str = fatal) -> None:
            if note == fatal:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            segment(spec, replace(disturbed, progress=trip))
    again = segment(spec, disturbed)
    assert again.values == undisturbed.values
    for output in ("model", "checkpoint"):
        assert hashes(again.outputs[output]) == hashes(undisturbed.outputs[output])


@pytest.mark.parametrize("cap", [300, 1, 0])
def test_where_no_step_fits_nothing_is_trained(
    classroom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: int
) -> None:
    for name in ("run_trainer", "expected_success"):
        monkeypatch.setattr(reinforce, name, None)
    made = segment(segment_spec(max_tokens=cap), desk(classroom, tmp_path))
    assert (made.values["steps"], made.values["tokens"], made.tokens, made.outputs) == (0, 0, 0, {})
    assert made.values["stopped"] == f"the {cap} tokens it may use do not suffice for a step"


def test_out_of_memory_halves_the_batch_once_and_is_remembered(
    classroom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = GRPOTrainer.compute_loss

    def narrow(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        if len(inputs["prompt_ids"]) > 6:
            raise torch.OutOfMemoryError("too much")
        return honest(self, model, inputs, *rest, **more)

    monkeypatch.setattr(GRPOTrainer, "compute_loss", narrow)
    values = segment(segment_spec(0, 2), desk(classroom, tmp_path)).values
    assert values["learned"] == {"micro_batch": 6}
    assert values["steps"] == 2


def test_a_tokenizer_made_plain_adds_no_special_tokens_of_its_own() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer(["one", "two"])
    end = tokenizer.eos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", end)])
    assert tokenizer(text=["one"])["input_ids"][0][0] == end
    assert len(plain(tokenizer)(text=["one"])["input_ids"][0]) == 1


SUMS: dict[str, Any] = {
    "name": "sums", "role": "target", "vault_items": 10, "verifier": "numeric", "source": {
        "kind": "reasoning_gym", "generator": "chain_sum",
        "config": {"min_terms": 2, "max_terms": 2, "min_digits": 3, "max_digits": 3},
    },
}
EASY = {**SUMS["source"]["config"], "min_digits": 1, "max_digits": 1}


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows some sums of one digit and has never seen others, and no data."""
    folder = tmp_path_factory.mktemp("school")
    easy = at_level(TaskSpec.from_json(SUMS), EASY)
    pairs = [(item.prompt, item.answer) for item in draw(easy, Split.SEARCH, 60, 1)]
    words = dict.fromkeys(word for prompt, _ in pairs for word in prompt.split())
    raw = tiny_model(folder / "raw", [*words, *map(str, range(-9, 20))], seed=1)
    teach(raw, pairs[:40], folder / "model", steps=60, rate=5e-3)
    return folder


def levelled(**changes: Any) -> JobSpec:
    spec = segment_spec(0, 6, save_steps=2, learning_rate=5e-3, mixture={}, replay=0.0, **changes)
    more = {"tasks": [SUMS], "levels": {"sums": EASY}, "probe_items": 12, "shaping": {"weights": {}, "strength": 0.0}}
    return replace(spec, params={**spec.params, **more})


def test_at_a_level_it_asks_easier_questions_and_measures_q_on_the_target_as_it_is(school: Path) -> None:
    tokenizer = tiny_tokenizer(["one"])
    task = TaskSpec.from_json(SUMS)
    sealed = frozenset(item.id for item in draw(at_level(task, EASY), Split.SEARCH, 20, 9))
    made = set_exercises([task], Seal(sealed), tokenizer, 300, 3, 20, 4, {"sums": EASY})
    asked = [question.item for question in made.questions]
    assert all(len(number) == 1 for item in asked for number in re.findall(r"\d+", item.prompt))
    assert all(len(number) == 3 for item in made.probe for number in re.findall(r"\d+", item.prompt))
    assert made.probe == set_exercises([task], Seal(sealed), tokenizer, 30, 3, 20, 4).probe
    assert not sealed & {item.id for item in asked}
    assert len(asked) == 300 > len({item.id for item in asked})          # the level has fewer: they come again


def test_a_segment_at_a_level_says_what_it_asked_and_ends_the_same_after_it_broke_off(
    school: Path, tmp_path: Path
) -> None:
    def given(folder: Path) -> Desk:
        folder.mkdir(parents=True, exist_ok=True)
        return Desk(folder, {"model": school / "model"})

    undisturbed = segment(levelled(), given(tmp_path / "undisturbed"))
    assert undisturbed.values["success"] > 0
    assert undisturbed.values["asked"] == {
        "sums": {"prompts": 18, "success": pytest.approx(undisturbed.values["success"])}
    }
    for fatal in ("step 3", "step 5"):

        def trip(done: float, note: str, fatal: str = fatal) -> None:
            if note == fatal:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            segment(levelled(), replace(given(tmp_path / "disturbed"), progress=trip))
    again = segment(levelled(), given(tmp_path / "disturbed"))
    assert again.values == undisturbed.values
    for output in ("model", "checkpoint"):
        assert hashes(again.outputs[output]) == hashes(undisturbed.outputs[output])
    plainly = replace(levelled(), params={key: value for key, value in levelled().params.items() if key != "levels"})
    assert hashes(segment(plainly, given(tmp_path / "plain")).outputs["model"]) != hashes(again.outputs["model"])


def test_each_task_is_told_apart_in_what_was_asked(classroom: Path, tmp_path: Path) -> None:
    spec = segment_spec(0, 3)
    spec.params["tasks"].append({**TASK, "name": "again"})             # type: ignore[attr-defined]
    made = segment(spec, desk(classroom, tmp_path)).values
    assert {name: told["prompts"] for name, told in made["asked"].items()} == {"maths2": 5, "again": 4}
    weighted = sum(told["prompts"] * told["success"] for told in made["asked"].values())
    assert weighted / 9 == pytest.approx(made["success"])
