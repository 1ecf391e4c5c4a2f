"""A reward model learns what tells right answers from wrong ones, also on prompts that it has not seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from coaching import desk, hashes
from judging import reward_spec, write_pairs
from tiny import save, tiny_model, tiny_tokenizer
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, Lfm2Config, Lfm2ForCausalLM

from loops.work.reward_model import HEAD, load_judge, read_pairs, reward_check, reward_model
from loops.work.watch import Diverged
from safety.yardstick import bilingual
from safety.yardstick.scoring import load_model
from state.jobs import Desk, JobSpec


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classroom")
    tiny_model(folder / "model", bilingual.VOCABULARY[3:], seed=1)
    write_pairs(folder / "pairs.jsonl")
    return folder


def at(classroom: Path, folder: Path, **inputs: Path) -> Desk:
    given = desk(classroom, folder, **{"pairs": classroom / "pairs.jsonl", **inputs})
    return replace(given, inputs={k: v for k, v in given.inputs.items() if not k.startswith("data:")})


@pytest.fixture(scope="module")
def made(classroom: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return reward_model(reward_spec(), at(classroom, tmp_path_factory.mktemp("made")))


def test_it_ranks_answers_to_prompts_that_it_has_not_seen(classroom: Path, made: Any, tmp_path: Path) -> None:
    values = made.values
    assert (values["pairs"], values["held_out"], values["steps"], values["stopped"]) == (36, 12, 12, None)
    assert values["loss_last"] < values["loss_first"]
    assert values["accuracy"] >= 0.9
    assert made.tokens == values["tokens"] > 0
    other = write_pairs(tmp_path / "other.jsonl", 20, seed=9)
    checked = reward_check(JobSpec("reward_check"), Desk(tmp_path, {
        "reward_model": made.outputs["model"], "pairs": other,
    })).values
    assert (checked["pairs"], checked["prompts"]) == (20, 20)
    assert checked["accuracy"] >= 0.9


def test_phi_is_a_half_at_the_reference_and_orders_as_the_rewards_do(classroom: Path, made: Any) -> None:
    judge = load_judge(made.outputs["model"], "cpu")
    pairs = read_pairs(classroom / "pairs.jsonl")
    asked = [(prompt, text) for prompt, chosen, rejected in pairs[:8] for text in (chosen, rejected)]
    rewards, phis = judge.rewards(asked), judge.phis(asked)
    assert all((phi > 0.5) == (r > judge.r_ref) for r, phi in zip(rewards, phis, strict=True))
    assert sorted(range(16), key=rewards.__getitem__) == sorted(range(16), key=phis.__getitem__)
    wrong = judge.rewards([(prompt, rejected) for prompt, _, rejected in pairs])
    assert judge.r_ref == pytest.approx(sum(wrong) / len(wrong), abs=1e-4)


def test_the_same_spec_gives_the_same_bits_and_another_seed_others(
    classroom: Path, made: Any, tmp_path: Path
) -> None:
    again, other = (reward_model(reward_spec(seed), at(classroom, tmp_path / str(seed))) for seed in (7, 8))
    assert again.values == made.values
    assert hashes(again.outputs["model"]) == hashes(made.outputs["model"])
    assert hashes(other.outputs["model"])[HEAD] != hashes(made.outputs["model"])[HEAD]


@pytest.mark.parametrize("adapter", [{"kind": "none"}, {"kind": "lora", "rank": 4, "alpha": 8.0}])
def test_one_that_broke_off_ends_as_if_it_had_not(classroom: Path, tmp_path: Path, adapter: dict[str, Any]) -> None:
    spec = reward_spec(adapter=adapter)
    undisturbed = reward_model(spec, at(classroom, tmp_path / "undisturbed"))
    disturbed = at(classroom, tmp_path / "disturbed")
    for fatal in ("step 3", "step 7", "step 12"):

        def trip(done: float, note: str, fatal: str = fatal) -> None:
            if note == fatal:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            reward_model(spec, replace(disturbed, progress=trip))
    again = reward_model(spec, disturbed)
    assert again.values == undisturbed.values
    assert hashes(again.outputs["model"]) == hashes(undisturbed.outputs["model"])


def test_an_adapter_is_merged_and_the_folder_is_a_language_model_too(classroom: Path, tmp_path: Path) -> None:
    made = reward_model(reward_spec(adapter={"kind": "dora", "rank": 4, "alpha": 8.0}), at(classroom, tmp_path))
    assert load_model(made.outputs["model"], "cpu").model.config.model_type == "llama"
    files = set(hashes(made.outputs["model"]))
    assert files >= {"model.safetensors", "config.json", "tokenizer.json", HEAD}
    assert json.loads((made.outputs["model"] / "reward.json").read_text()) == {"r_ref": made.values["r_ref"]}


def test_a_cap_on_tokens_cuts_steps_off_and_may_leave_none(classroom: Path, made: Any, tmp_path: Path) -> None:
    cap = made.tokens // 2
    capped = reward_model(reward_spec(max_tokens=cap), at(classroom, tmp_path / "half"))
    assert capped.tokens <= cap
    assert 0 < capped.values["steps"] < 12
    assert capped.values["curve"] == made.values["curve"][: capped.values["steps"]]
    none = reward_model(reward_spec(max_tokens=20), at(classroom, tmp_path / "none"))
    assert (none.values["steps"], none.outputs, none.tokens) == (0, {}, 0)
    assert none.values["stopped"] == "the 20 tokens it may use do not suffice for a step"


def test_what_is_no_set_of_pairs_is_refused_in_a_line(classroom: Path, tmp_path: Path) -> None:
    lone = write_pairs(tmp_path / "lone.jsonl", 1)
    with pytest.raises(ValueError, match="at least two prompts"):
        reward_model(reward_spec(), at(classroom, tmp_path / "a", pairs=lone))
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"prompt": "a", "chosen": "b"}\n')
    with pytest.raises(ValueError, match="pairs, line 1"):
        reward_model(reward_spec(), at(classroom, tmp_path / "b", pairs=torn))
    with pytest.raises(ValueError, match="no reward model"):
        load_judge(classroom / "model", "cpu")


def test_a_loss_that_is_no_number_ends_the_job(
    classroom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import RewardTrainer

    honest = RewardTrainer.compute_loss
    monkeypatch.setattr(
        RewardTrainer, "compute_loss", lambda self, *rest, **more: honest(self, *rest, **more) * float("nan")
    )
    with pytest.raises(Diverged, match="at step 1"):
        reward_model(reward_spec(), at(classroom, tmp_path))


def test_out_of_memory_halves_the_batch_and_learns_the_same(
    classroom: Path, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import RewardTrainer

    honest = RewardTrainer.compute_loss

    def narrow(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        if len(inputs["input_ids"]) > 8:
            raise torch.OutOfMemoryError("too much")
        return honest(self, model, inputs, *rest, **more)

    monkeypatch.setattr(RewardTrainer, "compute_loss", narrow)
    values = reward_model(reward_spec(), at(classroom, tmp_path)).values
    assert values["learned"] == {"micro_batch": 4}
    assert values["curve"] == pytest.approx(made.values["curve"], abs=1e-3)


def test_a_model_of_a_kind_without_a_class_for_classification_can_carry_a_head(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(bilingual.VOCABULARY[3:])
    config = Lfm2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, layer_types=["conv", "full_attention"], pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )
    assert Lfm2Config not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    torch.manual_seed(1)
    folder = save(Lfm2ForCausalLM(config), tokenizer, tmp_path / "model")
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    made = reward_model(reward_spec(), Desk(tmp_path / "made", {"model": folder, "pairs": pairs}))
    assert made.values["accuracy"] >= 0.9
    judge = load_judge(made.outputs["model"], "cpu")
    alone = judge.rewards([("a", "b")])
    assert judge.rewards([("a", "b"), ("a", "b b b b")])[:1] == pytest.approx(alone, abs=1e-5)
