"""The job "prefer" moves answers apart from a fixed reference, is a pure function of its spec, and carries runs on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from coaching import desk, hashes, make_classroom, prefer_spec
from safetensors.torch import load_file, save_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

from loops.work.learner import load_tokenizer
from loops.work.prefer import ByPreference, Preferring, prefer
from loops.work.rows import answer_log_p, read_pairs, tokenise
from loops.work.watch import Diverged


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classroom(tmp_path_factory.mktemp("classroom"))


@pytest.fixture(scope="module")
def whole(classroom: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return prefer(prefer_spec(), desk(classroom, folder)), folder


def margins(classroom: Path, model: Path, beta: float) -> torch.Tensor:
    """beta times by how much more each chosen answer has gained on the classroom's model than the rejected one."""
    rows = read_pairs({"data:preferences": classroom / "preferences"})
    log_p = []
    for folder in (model, classroom / "model"):
        tokenizer = load_tokenizer(folder)
        tokens = tokenise(rows, range(len(rows.texts)), tokenizer)
        with torch.no_grad():
            answers = answer_log_p(
                AutoModelForCausalLM.from_pretrained(folder), list(tokens.rows.values()), tokens.pad, "cpu"
            )
        log_p.append(torch.tensor([sum(answer) for answer in answers]))
    gained = log_p[0] - log_p[1]
    return beta * (gained[0::2] - gained[1::2])


def test_it_moves_the_chosen_answers_up_against_the_rejected_ones(classroom: Path, whole: tuple[Any, Path]) -> None:
    values = whole[0].values
    assert values["loss_first"] == pytest.approx(float(torch.tensor(2.0).log()), abs=1e-4)
    assert values["loss_last"] < 0.5
    assert values["sources"].keys() == {"preferences"}
    assert values["sources"]["preferences"]["rows"] == 96
    assert (margins(classroom, whole[0].outputs["model"], 0.2) > 0).float().mean() > 0.9


def test_the_drop_of_a_sources_loss_is_that_of_the_written_model(classroom: Path, whole: tuple[Any, Path]) -> None:
    loss = -logsigmoid(margins(classroom, whole[0].outputs["model"], 0.2)).mean()
    drop = whole[0].values["sources"]["preferences"]["loss_drop"]
    assert drop == pytest.approx(float(torch.tensor(2.0).log() - loss), abs=1e-4)


@pytest.mark.parametrize("loss", ["hinge", "ipo"])
def test_other_losses_are_learned_too(classroom: Path, tmp_path: Path, loss: str) -> None:
    made = prefer(prefer_spec(loss=loss), desk(classroom, tmp_path))
    first = {"hinge": 1.0, "ipo": (1 / (2 * 0.2)) ** 2}[loss]
    assert made.values["loss_first"] == pytest.approx(first, rel=1e-3)
    assert made.values["loss_last"] < 0.95 * first
    assert made.values["sources"]["preferences"]["loss_drop"] > 0


def test_the_same_spec_gives_the_same_bits_and_values(classroom: Path, whole: tuple[Any, Path], tmp_path: Path) -> None:
    again = prefer(prefer_spec(), desk(classroom, tmp_path))
    assert again.values == whole[0].values
    for output in ("model", "checkpoint"):
        assert hashes(again.outputs[output]) == hashes(whole[0].outputs[output])


@pytest.mark.parametrize("kind", ["none", "dora"])
def test_two_rungs_end_where_one_run_ends_for_they_hold_to_the_same_reference(
    classroom: Path, tmp_path: Path, kind: str
) -> None:
    adapter = {"adapter": {"kind": kind, "rank": 4, "alpha": 8.0}}
    one = prefer(prefer_spec(0, 6, **adapter), desk(classroom, tmp_path / "one"))
    first = prefer(prefer_spec(0, 3, **adapter), desk(classroom, tmp_path / "first"))
    given = {"checkpoint": first.outputs["checkpoint"], "model": first.outputs["model"]}
    second = prefer(prefer_spec(3, 6, **adapter), desk(classroom, tmp_path / "second", **given))
    assert hashes(second.outputs["checkpoint"]) == hashes(one.outputs["checkpoint"])
    assert hashes(second.outputs["model"])["model.safetensors"] == hashes(one.outputs["model"])["model.safetensors"]
    moved = prefer(prefer_spec(3, 6, **adapter),
                   desk(classroom, tmp_path / "moved", **given, reference=first.outputs["model"]))
    assert hashes(moved.outputs["model"])["model.safetensors"] != hashes(one.outputs["model"])["model.safetensors"]


def test_an_adapter_leaves_no_copy_of_itself_behind(classroom: Path, tmp_path: Path) -> None:
    made = prefer(prefer_spec(0, 2, adapter={"kind": "dora", "rank": 4, "alpha": 8.0}), desk(classroom, tmp_path))
    assert not [name for name in load_file(made.outputs["checkpoint"] / "weights.safetensors") if ".ref." in name]
    assert hashes(made.outputs["model"]).keys() == hashes(classroom / "model").keys()


@pytest.mark.parametrize("part", [0.999, 0.5])
def test_a_capped_one_does_the_steps_that_fit_and_is_the_shorter_run_bit_for_bit(
    classroom: Path, whole: tuple[Any, Path], tmp_path: Path, part: float
) -> None:
    cap = int(part * whole[0].tokens)
    capped = prefer(prefer_spec(max_tokens=cap), desk(classroom, tmp_path / "capped"))
    shorter = prefer(prefer_spec(0, capped.values["steps"]), desk(classroom, tmp_path / "shorter"))
    assert capped.tokens == shorter.tokens <= cap
    assert "do not suffice for another step" in capped.values["stopped"]
    for output in ("model", "checkpoint"):
        assert hashes(capped.outputs[output]) == hashes(shorter.outputs[output])


def test_where_no_step_fits_no_model_is_loaded(
    classroom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loops.work.course.load_learner", None)
    monkeypatch.setattr("loops.work.prefer.load_model", None)
    made = prefer(prefer_spec(max_tokens=50), desk(classroom, tmp_path))
    assert (made.values["steps"], made.tokens, made.outputs) == (0, 0, {})


def test_the_tokens_of_a_pair_are_those_of_both_its_rows(classroom: Path) -> None:
    rows = read_pairs({"data:preferences": classroom / "preferences", "data:a": classroom / "expert_maths"})
    tokenizer = AutoTokenizer.from_pretrained(classroom / "model")
    material = ByPreference().tokenise(rows, [3, 5], tokenizer)
    texts = [rows.texts[place] for place in (6, 7, 10, 11)]
    assert texts[0][0] == texts[1][0]
    assert rows.sources["a"] == range(0)
    assert material.count([3, 5]) == sum(len(f"{asked} {answer}".split()) + 1 for asked, answer in texts)


def test_out_of_memory_halves_the_batch_once_and_comes_to_the_same_loss(
    classroom: Path, tmp_path: Path, whole: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Preferring.compute_loss

    def narrow(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        if len(inputs["input_ids"]) > 8:
            raise torch.OutOfMemoryError("too much")
        return honest(self, model, inputs, *rest, **more)

    monkeypatch.setattr(Preferring, "compute_loss", narrow)
    values = prefer(prefer_spec(), desk(classroom, tmp_path)).values
    assert values["learned"] == {"micro_batch": 4}
    assert values["loss_last"] == pytest.approx(whole[0].values["loss_last"], rel=1e-3)


def test_a_loss_that_is_no_number_ends_the_job_with_a_reason(classroom: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(classroom / "model", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(Diverged, match="at step"):
        prefer(prefer_spec(), desk(classroom, tmp_path / "work", model=broken))


def test_without_preferences_there_is_nothing_to_learn_from(classroom: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows to train on"):
        prefer(prefer_spec(), desk(classroom, tmp_path, **{"data:preferences": classroom / "expert_maths"}))


def test_a_conversation_is_asked_by_the_template_of_the_model(classroom: Path, tmp_path: Path) -> None:
    model = shutil.copytree(classroom / "model", tmp_path / "model")
    asked = json.loads((classroom / "preferences" / "rows.jsonl").read_text().splitlines()[0])
    talk = {**asked, "prompt": [{"role": "user", "content": asked["prompt"]}],
            "rejected": [{"role": "assistant", "content": asked["rejected"]}]}
    (tmp_path / "talk.jsonl").write_text(json.dumps(talk) + "\n")
    given = {"data:preferences": tmp_path / "talk.jsonl"}
    with pytest.raises(ValueError, match="no chat template"):
        prefer(prefer_spec(0, 1), desk(classroom, tmp_path / "plain", **given))
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    )
    made = prefer(prefer_spec(0, 1), desk(classroom, tmp_path / "out", **given, model=model, reference=model))
    assert made.values["tokens"] == 8 * sum(
        len(f"{asked['prompt']} {asked[key]}".split()) + 1 for key in ("chosen", "rejected")
    )
