"""Bounds: what they read, refuse, admit and accept, and what counts as looser."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safety.admission import step_of
from safety.bounds import DEFAULT_TOML, Bounds, BoundsError, headroom, load_bounds, loosened
from safety.operators import OPERATORS, Gene, Operator
from safety.readings import of_change
from state.records import Candidate, JsonObject, LoopName, Verdict, canonical


def read(tmp_path: Path, text: str) -> Bounds:
    file = tmp_path / "bounds.toml"
    file.write_text(text)
    return load_bounds(file)


PATH = {"kind": "path", "parents": ["p", "q"], "layers": [[0, 0], [1, 3]], "scales": [1.0, 0.5], "places": [0, 9]}


def arch(**change: Any) -> Candidate:
    return Candidate(LoopName.ARCHITECTURE, change, "base", "incumbent")


MERGE: dict[str, Any] = {
    "kind": "merge", "operator": "task_arithmetic", "base": "b", "parents": ["p", "q"], "groups": 1,
    "modules": ["attention", "mlp", "other"], "weights": [[[0.5, 0.5, 0.5]], [[1.0, 2.5, 0.0]]], "seed": 1,
}
RECIPE: dict[str, Any] = {
    "stage": "grpo", "learning_rate": 1e-4, "batch": 8, "steps": 100, "warmup": 0.05, "schedule": "constant",
    "adapter": {"kind": "lora", "rank": 16, "alpha": 32}, "mixture": {}, "replay": 1.0, "temperature": 1.0, "group": 8,
    "beta": 0.0,
}
SHAPING: dict[str, Any] = {"weights": {"overlap": 1.0}, "strength": 0.4}


def test_the_default_text_reads_back_as_the_defaults_and_every_key_is_explained(tmp_path: Path) -> None:
    assert read(tmp_path, DEFAULT_TOML) == Bounds() == read(tmp_path, "")
    lines = DEFAULT_TOML.splitlines()
    for place, line in enumerate(lines):
        if " = " in line and not line.startswith("#"):
            assert lines[place - 1].startswith("# ")


def test_a_key_that_is_set_is_used_and_a_whole_number_may_stand_for_a_fraction(tmp_path: Path) -> None:
    bounds = read(tmp_path, '[gate]\nalpha = 0.01\n[guards]\nmargin = 0.05\nmargins = {"a b" = 0.1}\n'
                            "[resources]\njob_seconds = 60\n[drift.stable]\nkl_mean = 0.5\n")
    assert (bounds.gate.alpha, bounds.job_seconds, bounds.drift.stable.kl_mean) == (0.01, 60.0, 0.5)
    assert bounds.guards.of("a b") == 0.1
    assert bounds.guards.of("other") == 0.05
    assert bounds.drift.reference == Bounds().drift.reference


@pytest.mark.parametrize(("text", "words"), [
    ("[gate]\nalpa = 0.05", ["'alpa'", "[gate]", "'alpha'"]),
    ("[gates]\nalpha = 0.05", ["'gates'", "'gate'"]),
    ("[drift.stable]\nkl_meen = 1.0", ["'kl_meen'", "[drift.stable]", "'kl_mean'"]),
    ("alpha = 0.05", ["'alpha'", "at the top"]),
    ("[gate]\nalpha = \"much\"", ["'alpha'", "[gate]", "number"]),
    ("[gate]\nalpha = 0.0", ["'alpha'", "at least", "0.5"]),
    ("[gate]\nalpha = nan", ["'alpha'", "number"]),
    ("[gate]\nalpha = true", ["'alpha'", "number"]),
    ("[reward]\nmax_strength = 0.6", ["'max_strength'", "[reward]", "at most 0.5"]),
    ("[model]\nmax_layers = 2.5", ["'max_layers'", "whole number"]),
    ("[search]\noperators = \"ties\"", ["'operators'", "list"]),
    ("[supply]\nremote_code = true", ["'remote_code'", "false"]),
    ("[supply]\nformats = [\"pickle\"]", ["'formats'", "safetensors"]),
    ("[guards]\nmargins = {a = 2.0}", ["'margins'", "'a'"]),
    ("[search]\nmin_weight = 2.0\nmax_weight = 1.0", ["'min_weight'", "'max_weight'"]),
    ("gate = 3", ["[gate]", "section"]),
    ("[gate", ["TOML"]),
])
def test_a_mistake_is_one_line_that_names_file_section_and_key(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(BoundsError) as caught:
        read(tmp_path, text)
    line = str(caught.value)
    assert "\n" not in line
    assert "bounds.toml" in line
    assert all(word in line for word in words), line


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BoundsError, match=r"none\.toml: cannot be read"):
        load_bounds(tmp_path / "none.toml")


def test_bounds_survive_a_row_of_the_ledger_and_a_version_with_other_keys() -> None:
    bounds = replace(Bounds(), gate=replace(Bounds().gate, alpha=0.01))
    body = bounds.to_json()
    assert Bounds.from_json(body) == bounds
    canonical(body)
    del body["rate"]
    body["gate"]["gone"] = 3
    assert Bounds.from_json(body) == bounds
    assert bounds.digest != Bounds().digest


def test_each_direction_of_loosening_is_seen_and_tightening_is_not(tmp_path: Path) -> None:
    tight, loose = Bounds(), read(tmp_path, """
[gate]
alpha = 0.1
max_noise = 0.001
[search]
operators = ["linear", "magic"]
min_weight = -1.0
max_weight = 2.0
[rate]
cycles_between_nominations = 0
[drift.stable]
kl_mean = 9.0
""")
    names = [line.split(":")[0] for line in loosened(tight, loose)]
    assert names == [
        "search.operators", "search.min_weight", "drift.stable.kl_mean", "rate.cycles_between_nominations",
        "gate.alpha",
    ]
    assert not loosened(tight, tight)
    assert [line.split(":")[0] for line in loosened(loose, tight)] == [
        "search.operators", "search.max_weight", "gate.max_noise",
    ]


def test_a_guard_of_its_own_margin_is_compared_with_what_held_for_it_before(tmp_path: Path) -> None:
    plain = read(tmp_path, "[guards]\nmargin = 0.03")
    tighter = read(tmp_path, "[guards]\nmargin = 0.03\nmargins = {a = 0.02}")
    looser = read(tmp_path, "[guards]\nmargin = 0.03\nmargins = {a = 0.04}")
    assert not loosened(plain, tighter)
    assert loosened(plain, looser)
    assert loosened(tighter, plain)


def test_headroom_lists_every_bound_with_its_limit_and_what_it_does() -> None:
    rows = {name: (limit, action) for name, limit, action in headroom(Bounds())}
    assert rows["gate.alpha"] == (0.05, "refuses the release")
    assert rows["drift.reference.kl_mean"][0] == Bounds().drift.reference.kl_mean
    assert rows["rate.releases_per_day"][1] == "holds nominations back"


@pytest.mark.parametrize("candidate", [
    arch(**MERGE),
    arch(**{**MERGE, "operator": "ties", "density": [0.5, 0.8]}),
    arch(kind="merge", operator="slerp", parents=["p", "q"], t=[[0.0, 0.5, 1.0]], seed=1),
    arch(kind="crossover", parents=["p", "q"], split=10, mix=0.4),
    arch(kind="path", parents=["p", "q"], layers=[[0, 0], [1, 3], [0, 0]], scales=[1.0, 0.5, 2.0], places=[0, 9, 12]),
    arch(kind="keep"),
    Candidate(LoopName.PIPELINE, {"recipe": RECIPE, "rung": 0, "from_step": 0, "to_step": 11}, "b", "i"),
    Candidate(LoopName.REWARD, {"shaping": SHAPING, "recipe": RECIPE, "from_step": 0, "steps": 20}, "b", "i"),
    Candidate(LoopName.REWARD, {"shaping": {"weights": {}, "strength": 0.0}}, "b", "i"),
    Candidate(LoopName.REWARD, {"shaping": {"weights": {"agreement": 0.0}, "strength": 0.1}}, "b", "i"),
])
def test_what_is_within_the_bounds_is_admitted(candidate: Candidate) -> None:
    assert Bounds().admit(candidate) is None


@pytest.mark.parametrize(("change", "bound"), [
    ({"kind": "grow"}, "search.kind"),
    ({}, "search.kind"),
    ({**MERGE, "operator": "magic"}, "search.operators"),
    ({**MERGE, "weights": [[[2.51]]]}, "search.weight"),
    ({**MERGE, "weights": [[[-0.01]]]}, "search.weight"),
    ({**MERGE, "weights": [[[float("nan")]]]}, "search.weight"),
    ({**MERGE, "weights": [[["1"]]]}, "search.weight"),
    ({key: value for key, value in MERGE.items() if key != "weights"}, "search.weight"),
    ({**MERGE, "parents": ["p"] * 9}, "search.max_parents"),
    ({**MERGE, "parents": []}, "search.max_parents"),
    ({**MERGE, "weights": []}, "search.weight"),
    ({**MERGE, "operator": "ties", "density": [1.5]}, "search.density"),
    ({**MERGE, "operator": "ties"}, "search.density"),
    ({"kind": "merge", "operator": "passthrough", "parents": ["p"], "source": [[0.5]], "scales": [[2.6]]},
     "search.weight"),
    ({"kind": "merge", "operator": "slerp", "parents": ["p", "q"], "t": [1.2]}, "search.t"),
    ({"kind": "crossover", "parents": ["p", "q"], "split": 1, "mix": 1.7}, "search.mix"),
    ({**PATH, "scales": [1.0, 2.01]}, "search.scale"),
    ({**PATH, "scales": [1.0, 0.0]}, "search.scale"),
    ({**PATH, "scales": [1.0, -1.0]}, "search.scale"),
    ({**PATH, "scales": [1.0, float("nan")]}, "search.scale"),
    ({**PATH, "scales": [1.0]}, "search.path"),
    ({**PATH, "layers": [[0, 0], [2, 1]]}, "search.path"),
    ({**PATH, "layers": [[0, 0], [0, -1]]}, "search.path"),
    ({**PATH, "layers": [[0, 0], [0, True]]}, "search.path"),
    ({**PATH, "layers": [[0, 0], 1]}, "search.path"),
    ({"kind": "path", "parents": ["p"]}, "search.path"),
    ({**PATH, "parents": []}, "search.max_parents"),
    ({**PATH, "layers": [], "scales": []}, "model.max_layers"),
    ({**PATH, "layers": [[0, 0]] * 201, "scales": [1.0] * 201}, "model.max_layers"),
])
def test_an_architecture_change_outside_a_bound_is_refused_by_name(change: dict[str, Any], bound: str) -> None:
    refusal = Bounds().admit(arch(**change))
    assert refusal is not None
    assert refusal.bound == bound
    outcome = refusal.outcome()
    assert outcome.verdict is Verdict.REFUSED
    assert bound in outcome.reason
    canonical(outcome.to_json())


def merge_of(operator: Operator) -> JsonObject:
    """A merge with every gene that the operator has, all at their lowest."""
    def numbers(gene: Gene) -> Any:
        value: Any = [[gene.low] * 3] * 2 if gene.per_cell else gene.low
        return [value, value] if gene.per_parent else value

    genes = {gene.name: numbers(gene) for gene in OPERATORS[operator].genes}
    return {"kind": "merge", "operator": str(operator), "base": "b", "parents": ["p", "q"], "groups": 2, **genes}


@pytest.mark.parametrize("operator", list(Operator))
def test_every_gene_of_every_operator_must_be_there_and_within_its_range(operator: Operator) -> None:
    change = merge_of(operator)
    assert Bounds().admit(arch(**change)) is None
    for gene in OPERATORS[operator].genes:
        for odd in (None, [], "1", gene.high + 0.01, gene.low - 0.01, [[[gene.high + 0.01]]], float("nan")):
            refusal = Bounds().admit(arch(**{**change, gene.name: odd}))
            assert refusal is not None and refusal.bound.startswith("search."), (gene.name, odd)
        refusal = Bounds().admit(arch(**{key: value for key, value in change.items() if key != gene.name}))
        assert refusal is not None and refusal.bound.startswith("search."), gene.name


@pytest.mark.parametrize("operator", list(Operator))
def test_the_step_between_two_merges_is_that_of_the_cell_that_changed_most(operator: Operator) -> None:
    change = merge_of(operator)
    assert step_of(change, change) == 0.0
    for gene in OPERATORS[operator].genes:
        moved = [[gene.low, gene.low, gene.low], [gene.low, gene.high, gene.low]]
        other = {**change, gene.name: [moved, moved] if gene.per_parent else moved}
        if gene.per_cell:
            assert step_of(other, change) == step_of(change, other) == pytest.approx(gene.high - gene.low)


def test_an_operator_that_the_bounds_name_but_nobody_knows_is_refused() -> None:
    bounds = replace(Bounds(), search=replace(Bounds().search, operators=("magic",)))
    refusal = bounds.admit(arch(**{**MERGE, "operator": "magic"}))
    assert refusal is not None and refusal.bound == "search.operators"


@pytest.mark.parametrize(("part", "bound"), [
    ({"stage": "dpo"}, "pipeline.stages"),
    ({"learning_rate": 0.02}, "pipeline.learning_rate"),
    ({"learning_rate": None}, "pipeline.learning_rate"),
    ({"steps": 10**6}, "pipeline.max_steps"),
    ({"batch": 4000, "group": 8}, "pipeline.max_batch"),
    ({"adapter": {"kind": "magic"}}, "pipeline.adapters"),
    ({"adapter": {"kind": "lora", "rank": 4096}}, "pipeline.max_rank"),
])
def test_a_recipe_outside_a_bound_is_refused_in_both_loops_that_carry_one(part: dict[str, Any], bound: str) -> None:
    recipe = {**RECIPE, **part}
    for candidate in (
        Candidate(LoopName.PIPELINE, {"recipe": recipe}, "b", "i"),
        Candidate(LoopName.REWARD, {"shaping": SHAPING, "recipe": recipe}, "b", "i"),
    ):
        refusal = Bounds().admit(candidate)
        assert refusal is not None
        assert refusal.bound == bound


def test_both_answers_of_a_pair_are_rows_of_a_step() -> None:
    bounds = replace(Bounds(), pipeline=replace(Bounds().pipeline, stages=("dpo",), max_batch=64))
    recipe = {**RECIPE, "stage": "dpo", "batch": 32, "group": 8}
    assert bounds.admit(Candidate(LoopName.PIPELINE, {"recipe": recipe}, "b", "i")) is None
    assert of_change({"recipe": recipe})["pipeline.max_batch"] == 64
    refusal = bounds.admit(Candidate(LoopName.PIPELINE, {"recipe": {**recipe, "batch": 33}}, "b", "i"))
    assert refusal is not None and (refusal.bound, refusal.value) == ("pipeline.max_batch", 66)


@pytest.mark.parametrize(("change", "bound"), [
    ({"shaping": {"weights": {"overlap": 1.0}, "strength": 0.51}}, "reward.max_strength"),
    ({"shaping": {"weights": {"overlap": 1.0}, "strength": -0.1}}, "reward.max_strength"),
    ({"shaping": {"weights": {"flattery": 1.0}, "strength": 0.1}}, "reward.features"),
    ({"shaping": {"weights": {"overlap": float("inf")}, "strength": 0.1}}, "reward.weight"),
    ({"recipe": RECIPE}, "reward.shaping"),
    ({"kind": "merge", "shaping": SHAPING}, "reward.kind"),
])
def test_a_shaping_outside_a_bound_is_refused(change: dict[str, Any], bound: str) -> None:
    refusal = Bounds().admit(Candidate(LoopName.REWARD, change, "b", "i"))
    assert refusal is not None
    assert refusal.bound == bound


def test_a_pipeline_change_without_a_recipe_or_of_another_kind_is_refused() -> None:
    for change in ({}, {"recipe": "all"}, {"kind": "rewrite", "recipe": RECIPE}):
        assert Bounds().admit(Candidate(LoopName.PIPELINE, change, "b", "i")) is not None


FACTS = {
    "parameters": 10, "layers": 2, "dtypes": ["float32"], "file_gib": 0.1, "non_finite": 0, "vocabulary": 8,
    "hidden": 4, "intermediate": 8, "model_type": "llama", "loads_code": [],
}


def test_a_sound_model_is_accepted_and_each_broken_limit_is_named() -> None:
    bounds = replace(Bounds(), model=replace(Bounds().model, max_parameters=100, max_layers=4, max_file_gib=1.0))
    assert bounds.accept(FACTS) is None
    for change, name in (
        ({"parameters": 101}, "model.max_parameters"), ({"layers": 5}, "model.max_layers"),
        ({"file_gib": 2.0}, "model.max_file_gib"), ({"dtypes": ["int8"]}, "model.dtypes"),
        ({"non_finite": 1}, "model.non_finite"),
    ):
        refusal = bounds.accept({**FACTS, **change})
        assert refusal is not None
        assert refusal.bound == name
    missing = bounds.accept({})
    assert missing is not None


def test_drift_over_a_limit_is_refused_and_so_is_a_drift_that_is_no_number() -> None:
    bounds = Bounds()
    limits = bounds.drift.stable
    assert bounds.accept(FACTS, {"kl_mean": limits.kl_mean}, limits, "drift.stable") is None
    for value in (limits.kl_mean + 0.1, "nan", None):
        refusal = bounds.accept(FACTS, {"kl_mean": value}, limits, "drift.stable")
        assert refusal is not None
        assert refusal.bound == "drift.stable.kl_mean"


def test_reading_bounds_imports_nothing_heavy() -> None:
    code = "import sys, safety.bounds; print(sorted({m.split('.')[0] for m in sys.modules} & set(sys.argv[1:])))"
    heavy = ["torch", "pydantic", "numpy", "sqlalchemy", "transformers"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[3])
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("key", "strict", "loose", "both"), [
    ("gate.approval", '"required"', '"none"', False), ("gate.procedure", '"lifetime"', '"e-lond"', False),
    ("gate.items", '"vault"', '"fresh"', True), ("gate.watch_alpha", "0.1", "0.05", False),
    ("gate.watch_items", "2000", "100", False), ("rate.rollbacks_per_week", "1", "5", False),
])
def test_the_options_of_the_gate_and_the_watch_loosen_in_one_direction(
    tmp_path: Path, key: str, strict: str, loose: str, both: bool
) -> None:
    section, _, name = key.partition(".")
    first, second = (read(tmp_path, f"[{section}]\n{name} = {value}") for value in (strict, loose))
    assert [line.partition(":")[0] for line in loosened(first, second)] == [key]
    assert bool(loosened(second, first)) == both


def test_an_option_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BoundsError, match=r"'approval' in section \[gate\] can only hold"):
        read(tmp_path, '[gate]\napproval = "perhaps"')
