"""Genes become recipes, and the default is one of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loops.pipeline.recipe import DEFAULTS, GRPO, SFT, Adapter, AdapterKind, Loss, Stage
from loops.pipeline.space import Choice, Ranges, Space

SOURCES = ["a", "b"]


@pytest.mark.parametrize("stage", list(Stage))
def test_the_default_recipe_is_a_point_of_the_space(stage):
    space = Space(preferences=frozenset(SOURCES if stage is Stage.DPO else []))
    genes, allowed = space.default_genes(stage, SOURCES), space.genes(stage, SOURCES)
    assert genes.keys() == allowed.keys()
    assert all(gene.holds(genes[name]) for name, gene in allowed.items())
    recipe = space.recipe(stage, genes, SOURCES, {})
    assert replace(recipe, mixture={}) == replace(DEFAULTS[stage], mixture={})
    assert recipe.mixture == {"a": 0.5, "b": 0.5}


def test_a_default_outside_the_ranges_is_added_to_them():
    odd = replace(SFT, warmup=0.33, adapter=Adapter(AdapterKind.DORA, 5, 5.0))
    space = Space(defaults={Stage.SFT: odd, Stage.GRPO: GRPO}, ranges=Ranges(adapters=(AdapterKind.NONE,)))
    genes = space.genes(Stage.SFT, SOURCES)
    assert genes["sft.warmup"].holds(0.33)
    assert genes["sft.rank"].holds(5)
    assert genes["sft.adapter"] == Choice(("dora", "none"))


def test_without_adapters_there_is_no_rank_to_choose():
    space = Space(defaults={Stage.SFT: replace(SFT, adapter=Adapter())})
    assert "sft.rank" not in space.genes(Stage.SFT, SOURCES)


def test_stages_share_no_gene_and_one_source_has_no_tilt():
    space = Space()
    assert not space.genes(Stage.SFT, SOURCES).keys() & space.genes(Stage.GRPO, SOURCES).keys()
    assert not any("tilt" in name for name in space.genes(Stage.SFT, ["a"]))


def test_factors_scale_the_default():
    genes = {**Space().default_genes(Stage.GRPO, SOURCES), "grpo.batch": 0.5, "grpo.group": 2.0, "grpo.replay": 2.0}
    recipe = Space().recipe(Stage.GRPO, genes, SOURCES, {})
    assert (recipe.batch, recipe.group, recipe.replay) == (GRPO.batch // 2, 2 * GRPO.group, 2 * GRPO.replay)


def test_an_operators_mixture_is_the_point_that_tilts_move():
    space = Space(defaults={Stage.SFT: replace(SFT, mixture={"a": 0.6, "b": 0.4})})
    level = space.default_genes(Stage.SFT, SOURCES)
    assert space.recipe(Stage.SFT, level, SOURCES, {}).mixture == pytest.approx({"a": 0.6, "b": 0.4})
    tilted = space.recipe(Stage.SFT, {**level, "sft.tilt:b": 1.5}, SOURCES, {}).mixture
    assert tilted["b"] > 0.7
    assert sum(tilted.values()) == pytest.approx(1.0)


def test_dpo_varies_its_loss_and_learns_from_preferences_alone():
    space = Space(preferences=frozenset(["b", "own"]))
    genes = {**space.default_genes(Stage.DPO, ["a", "b", "own"]), "dpo.loss": "ipo", "dpo.beta": 0.3}
    recipe = space.recipe(Stage.DPO, genes, ["a", "b", "own"], {})
    assert (recipe.loss, recipe.beta, recipe.mixture) == (Loss.IPO, 0.3, {"b": 0.5, "own": 0.5})
    assert space.recipe(Stage.SFT, {}, ["a", "b", "own"], {}).mixture == {"a": 1.0}
    assert not any("tilt" in name for name in space.genes(Stage.SFT, ["a", "b", "own"]))
