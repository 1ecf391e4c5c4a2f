"""A recipe as a value: its JSON form, its schedule and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from loops.pipeline.recipe import DPO, GRPO, SFT, Adapter, AdapterKind, Loss, Recipe, Schedule, Stage


@pytest.mark.parametrize("recipe", [
    SFT, GRPO, replace(DPO, loss=Loss.IPO), replace(SFT, mixture={"a": 0.3}, adapter=Adapter(AdapterKind.DORA, 4, 8)),
])
def test_a_recipe_survives_json(recipe):
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize(("field", "value"), [
    ("learning_rate", 0.0), ("batch", 0), ("steps", 0), ("warmup", 1.5), ("group", 1), ("temperature", 0.0),
    ("beta", -1.0), ("mixture", {"a": -0.1}), ("schedule", "cubic"), ("stage", "ppo"), ("colour", "red"),
    ("loss", "dapo"), ("adapter", {"kind": "lora", "rank": 0}), ("temperature", math.inf), ("replay", math.nan),
])
def test_what_is_malformed_is_refused(field, value):
    with pytest.raises(ValueError, match=r"recipe|not a valid"):
        Recipe.from_json({**SFT.to_json(), field: value})


def test_a_recipe_that_was_written_before_there_was_a_loss_is_read():
    body = {name: value for name, value in DPO.to_json().items() if name != "loss"}
    assert Recipe.from_json(body) == DPO
    assert "loss" not in SFT.to_json() | GRPO.to_json()


def test_preferences_need_something_that_holds_the_model_near_the_reference():
    with pytest.raises(ValueError, match="beta must be above 0 for dpo"):
        replace(DPO, beta=0.0)


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match="batch"):
        Recipe.from_json({"stage": "sft", "learning_rate": 0.1, "steps": 3})


def test_the_rate_rises_through_the_warmup_and_then_follows_the_schedule():
    recipe = replace(SFT, learning_rate=0.1, steps=100, warmup=0.1, schedule=Schedule.LINEAR)
    assert recipe.rate(0) == pytest.approx(0.01)
    assert recipe.rate(9) == pytest.approx(0.1)
    assert recipe.rate(55) == pytest.approx(0.05)
    assert recipe.rate(100) == 0.0
    assert replace(recipe, schedule=Schedule.CONSTANT).rate(99) == 0.1
    assert replace(recipe, schedule=Schedule.COSINE).rate(55) == pytest.approx(0.05)


def test_shares_sum_to_1_over_the_sources_that_exist():
    recipe = replace(SFT, mixture={"a": 1.0, "b": 3.0, "gone": 9.0})
    assert recipe.shares({"a": 1, "b": 1}) == {"a": 0.25, "b": 0.75}
    assert replace(SFT, mixture={}).shares({"a": 1, "b": 1}) == {"a": 0.5, "b": 0.5}
    assert SFT.shares({}) == {}


def test_reinforcement_answers_every_prompt_in_a_group():
    assert (GRPO.completions, replace(GRPO, stage=Stage.SFT).completions) == (64, 8)
    assert DPO.completions == 2 * DPO.batch
