"""Every bound there is bites: what lies just inside is let through, what lies just outside meets the bound by name.

A bound without a case here fails the suite, so that none is only written down.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from court import FACTS, SERVED, Court, canned, canned_court
from safetensors.numpy import save_file

from safety import protected
from safety.admission import admit_input
from safety.bounds import Bounds
from safety.breaker import Breaker, Signs
from safety.eprocess import EProcess
from safety.gate import Decision, Rules, decide
from safety.limits import limits_of
from safety.preflight import preflight
from safety.release import hindrance, nominate
from state.jobs import Desk, JobSpec, Produced
from state.records import Candidate, JsonObject, LoopName, Verdict

Case = Callable[[Path, bool], str | None]
"""(a folder, whether it lies outside) -> the bound's answer in words, None where it has none."""

MERGE: JsonObject = {
    "kind": "merge", "operator": "task_arithmetic", "base": "b", "parents": ["p", "q"], "groups": 1,
    "weights": [[[0.5, 0.5, 0.5]], [[1.0, 1.0, 1.0]]],
}
PATH: JsonObject = {"kind": "path", "layers": [[0, 0], [1, 1]], "scales": [1.0, 1.0], "places": [0, 3]}
RECIPE: JsonObject = {
    "stage": "grpo", "learning_rate": 1e-4, "batch": 8, "steps": 100, "group": 8,
    "adapter": {"kind": "lora", "rank": 16},
}
DAY = 86_400.0
ROOT = Path(__file__).parents[3]


def bounds_with(name: str, value: Any, also: Mapping[str, Any] | None = None) -> Bounds:
    """The defaults but for some bounds, by name."""
    body = Bounds().to_json()
    for dotted, entry in {name: value, **(also or {})}.items():
        place = body
        *sections, key = dotted.split(".")
        for section in sections:
            place = place[section]
        place[key] = entry
    return Bounds.from_json(body)


FREE = {"rate.dwell_seconds": 0.0, "rate.cycles_between_nominations": 0}


# ---------------------------------------------------------------- changes, models, drift

def change(
    name: str, limit: Any, inside: JsonObject, outside: JsonObject, loop: LoopName, incumbent: Any = None
) -> Case:
    def case(folder: Path, out: bool) -> str | None:
        refusal = bounds_with(name, limit).admit(Candidate(loop, outside if out else inside, "b", "i"), incumbent)
        return str(refusal) if refusal else None
    return case


def merge(name: str, limit: Any, inside: JsonObject, outside: JsonObject, incumbent: Any = None) -> Case:
    return change(name, limit, MERGE | inside, MERGE | outside, LoopName.ARCHITECTURE, incumbent)


def recipe(name: str, limit: Any, inside: JsonObject, outside: JsonObject) -> Case:
    return change(name, limit, {"recipe": RECIPE | inside}, {"recipe": RECIPE | outside}, LoopName.PIPELINE)


def shaping(name: str, limit: Any, inside: JsonObject, outside: JsonObject) -> Case:
    usual: JsonObject = {"weights": {"overlap": 1.0}, "strength": 0.1}
    return change(name, limit, {"shaping": usual | inside}, {"shaping": usual | outside}, LoopName.REWARD)


def model(name: str, limit: Any, inside: JsonObject, outside: JsonObject) -> Case:
    def case(folder: Path, out: bool) -> str | None:
        refusal = bounds_with(name, limit).accept({**FACTS, **(outside if out else inside)})
        return str(refusal) if refusal else None
    return case


def drift(name: str) -> Case:
    def case(folder: Path, out: bool) -> str | None:
        bounds = bounds_with(name, 2.0)
        _, side, key = name.split(".")
        refusal = bounds.accept(dict(FACTS), {key: math.nextafter(2.0, 9.0) if out else 2.0},
                                getattr(bounds.drift, side), f"drift.{side}")
        return str(refusal) if refusal else None
    return case


# ---------------------------------------------------------------- releases

def release(name: str, limit: Any, inside: JsonObject, outside: JsonObject) -> Case:
    """What a whole nomination says, with jobs that answer as told."""
    def case(folder: Path, out: bool) -> str | None:
        court = canned_court(folder / "state", **(outside if out else inside))
        court.bounds = bounds_with(name, limit)
        court.move_working(court.text_model("second"))
        row = nominate(court.desk)
        assert row is not None
        assert (row.verdict == Verdict.PROMOTED) != out, row.reason
        return row.reason if out else None
    return case


def serving(key: str, limit: float, inside: float, outside: float) -> Case:
    return release(f"serving.{key}", limit, {"serving": {**SERVED, key: inside}}, {"serving": {**SERVED, key: outside}})


def canaries(folder: Path, out: bool) -> str | None:
    court = canned_court(folder / "state")

    def gate(spec: JobSpec, desk: Desk) -> Produced:
        rules = Rules.from_json(dict(spec.params))
        return Produced({**rules.to_json(), "decision": "canary_failed", "canaries": {"maths": ["empty"]}, "n": 0})

    def found(spec: JobSpec, desk: Desk) -> Produced:
        return gate(spec, desk) if out and not spec.params.get("aa") else canned()["gate"](spec, desk)

    court.runner.jobs = {**canned(), "gate": found}
    court.move_working(court.text_model("second"))
    row = nominate(court.desk)
    assert row is not None
    return row.reason if row.verdict == Verdict.REFUSED else None


def week(folder: Path, out: bool) -> str | None:
    """Two releases of .2 each: the second one meets a limit below .4, unless the first is a week ago."""
    court = canned_court(folder / "state")
    court.bounds = bounds_with("rate.drift_per_week", 0.39, FREE)
    court.move_working(court.text_model("second"))
    first = nominate(court.desk)
    assert first is not None
    assert first.verdict == Verdict.PROMOTED
    court.later(days=7 if not out else 6.9)
    court.move_working(court.text_model("third"))
    row = nominate(court.desk)
    assert row is not None
    assert row.evidence["drift_week"] == pytest.approx(0.4 if out else 0.2)
    return row.reason if row.verdict == Verdict.REFUSED else None


def held(name: str, limit: Any, later: Callable[[Court], object]) -> Case:
    """Why a second model is not nominated after a first one, and that it is once `later` was done."""
    def case(folder: Path, out: bool) -> str | None:
        court = canned_court(folder / "state")
        court.bounds = bounds_with(name, limit, {key: value for key, value in FREE.items() if key != name})
        court.move_working(court.text_model("second"))
        assert nominate(court.desk) is not None
        if not out:
            later(court)
        court.move_working(court.text_model("third"))
        return hindrance(court.desk)
    return case


def tampered(name: str, tamper: Callable[[Court, Path], object]) -> Case:
    """Something protected changes while the gate is at work: refused by name, and releases stop."""
    def case(folder: Path, out: bool) -> str | None:
        checkout = folder / "checkout"
        (checkout / "safety").mkdir(parents=True)
        (checkout / "safety" / "bounds.py").write_text("MAX = 1\n")
        court = canned_court(folder / "state")
        court.bounds = bounds_with("code.modules", ["safety"])

        def gate(spec: JobSpec, desk: Desk) -> Produced:
            if out:
                tamper(court, checkout)
            return canned()["gate"](spec, desk)

        court.runner.jobs = {**canned(), "gate": gate}
        court.move_working(court.text_model("second"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(protected, "ROOT", checkout)
            row = nominate(court.desk)
        assert row is not None
        assert bool(protected.stopped(court.ledger)) == out
        assert (court.ledger.channel("stable") == row.result) != out
        return row.reason if row.verdict == Verdict.REFUSED else None
    return case


def edit_vault(court: Court, checkout: Path) -> None:
    file = next(court.registry.path(court.desk.seals.vault).glob("*.json"))
    file.chmod(0o600)
    file.write_text("easier")


def loosen(court: Court, checkout: Path) -> None:
    court.bounds = replace(court.bounds, gate=replace(court.bounds.gate, alpha=0.2))


# ---------------------------------------------------------------- the gate's own numbers

def judged(rules: JsonObject, differences: list[float], guard: list[float] | None = None) -> Decision:
    usual: JsonObject = {"k": 1, "alpha": 0.05, "d0": 0.0, "least_gain": 0.3, "margins": {"naming": 0.03}}
    found = decide(Rules(**{**usual, **rules}), [differences], {"naming": [guard or [0.0] * 300]})
    return found.decision


def alpha(folder: Path, out: bool) -> str | None:
    """The same evidence passes at the level that it reaches and not at a stricter one."""
    process = EProcess(0.0)
    for _ in range(20):
        process.add(1.0)
    enough = next(a for a in (10**-n for n in range(1, 12)) if Rules(1, a, 0.0, 0.3, {}).threshold > process.e)
    decision = judged({"alpha": enough if out else enough * 10}, [1.0] * 20)
    return "gate.alpha" if decision is not Decision.RELEASE else None


def least(folder: Path, out: bool) -> str | None:
    decision = judged({"least_gain": 0.3 if out else 1e-6}, [1.0, -1.0] * 100)
    return "gate.least_gain" if decision is Decision.FUTILE else None


def gain(folder: Path, out: bool) -> str | None:
    decision = judged({"d0": 0.4 if out else 0.1}, [1.0, 0.0, 0.0] * 200)
    return "gate.d0" if decision is not Decision.RELEASE else None


def guard(name: str) -> Case:
    def case(folder: Path, out: bool) -> str | None:
        own = {"naming": 0.03 if out else 0.2}
        bounds = bounds_with(name, own if name.endswith("margins") else own["naming"])
        margins = {"naming": bounds.guards.of("naming")}
        decision = judged({"margins": margins}, [1.0] * 60, [-1.0, *[0.0] * 9] * 30)
        return name if decision is Decision.GUARD_FAILED else None
    return case


# ---------------------------------------------------------------- the service and its inputs

def sign(name: str, limit: Any, inside: Signs, outside: Signs) -> Case:
    return lambda folder, out: Breaker(bounds_with(name, limit)).reason(outside if out else inside)


def job_seconds(folder: Path, out: bool) -> str | None:
    """The runner is told the limit with every job of a nomination; that it kills is in test_runner.py."""
    court = canned_court(folder / "state")
    court.bounds = bounds_with("resources.job_seconds", 7.0 if out else 14_400.0)
    run, told = court.runner.run, []

    def noting(spec: JobSpec, *, timeout_seconds: float | None = None) -> Any:
        told.append(timeout_seconds)
        return run(spec, timeout_seconds=timeout_seconds)

    court.runner.run = noting                                                            # type: ignore[method-assign]
    court.move_working(court.text_model("second"))
    nominate(court.desk)
    return "resources.job_seconds" if set(told) == {7.0} else None


def small_model(folder: Path) -> Path:
    import numpy

    folder.mkdir(parents=True)
    save_file({"model.embed_tokens.weight": numpy.zeros((4, 2), "float32")}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 2, "vocab_size": 4}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def given(name: str, limit: Any, spoil: Callable[[Path], object], word: str) -> Case:
    def case(folder: Path, out: bool) -> str | None:
        made = small_model(folder / "model")
        if out:
            spoil(made)
        problems = preflight([made], bounds_with(name, limit))
        said = "; ".join(str(problem) for problem in problems)
        assert not problems or word in said, said
        return name if problems else None
    return case


def parents(folder: Path, out: bool) -> str | None:
    assert admit_input(Bounds(), "a" * 64) is None                             # none named: any
    refusal = admit_input(bounds_with("supply.parents", ["a" * 64]), ("b" if out else "a") * 64)
    return str(refusal) if refusal else None


CASES: dict[str, Case] = {
    "model.max_parameters": model("model.max_parameters", 100, {"parameters": 100}, {"parameters": 101}),
    "model.max_layers": model("model.max_layers", 4, {"layers": 4}, {"layers": 5}),
    "model.max_file_gib": model("model.max_file_gib", 1.0, {"file_gib": 1.0}, {"file_gib": 1.01}),
    "model.dtypes": model("model.dtypes", ["float32"], {"dtypes": ["float32"]}, {"dtypes": ["float32", "float16"]}),
    "model.max_vocabulary": model("model.max_vocabulary", 8, {"vocabulary": 8}, {"vocabulary": 9}),
    "model.max_hidden": model("model.max_hidden", 4, {"hidden": 4}, {"hidden": 5}),
    "model.max_intermediate": model("model.max_intermediate", 8, {"intermediate": 8}, {"intermediate": 9}),
    "model.architectures": model(
        "model.architectures", ["llama"], {"model_type": "llama"}, {"model_type": "surprise"}),
    "model.same_schema": model("model.same_schema", True, {"unlike": []}, {"unlike": ["norm.weight is new"]}),
    "search.operators": merge("search.operators", ["task_arithmetic"], {}, {"operator": "linear"}),
    "search.min_weight": merge("search.min_weight", 0.5, {}, {"weights": [[[0.49]]]}),
    "search.max_weight": merge("search.max_weight", 1.0, {}, {"weights": [[[1.01]]]}),
    "search.min_scale": merge("search.min_scale", 0.8, PATH, {**PATH, "scales": [1.0, 0.79]}),
    "search.max_scale": merge("search.max_scale", 1.2, PATH, {**PATH, "scales": [1.0, 1.21]}),
    "search.max_parents": merge("search.max_parents", 2, {}, {"parents": ["p", "q", "r"]}),
    "search.largest_step": merge(
        "search.largest_step", 0.5, {"weights": [[[1.0, 0.5, 0.5]], [[1.0, 1.0, 1.0]]]},
        {"weights": [[[0.5, 0.5, 0.5]], [[1.0, 1.51, 1.0]]]}, incumbent=MERGE),
    "pipeline.stages": recipe("pipeline.stages", ["grpo"], {}, {"stage": "sft"}),
    "pipeline.min_learning_rate": recipe(
        "pipeline.min_learning_rate", 1e-5, {"learning_rate": 1e-5}, {"learning_rate": 9e-6}),
    "pipeline.max_learning_rate": recipe(
        "pipeline.max_learning_rate", 1e-3, {"learning_rate": 1e-3}, {"learning_rate": 1.1e-3}),
    "pipeline.max_steps": recipe("pipeline.max_steps", 100, {}, {"steps": 101}),
    "pipeline.max_batch": recipe("pipeline.max_batch", 64, {}, {"group": 9}),
    "pipeline.adapters": recipe("pipeline.adapters", ["lora"], {}, {"adapter": {"kind": "dora", "rank": 1}}),
    "pipeline.max_rank": recipe("pipeline.max_rank", 16, {}, {"adapter": {"kind": "lora", "rank": 17}}),
    "reward.max_strength": shaping("reward.max_strength", 0.3, {"strength": 0.3}, {"strength": 0.31}),
    "reward.features": shaping("reward.features", ["overlap"], {}, {"weights": {"prefix": 1.0}}),
    **{
        f"drift.{side}.{key}": drift(f"drift.{side}.{key}")
        for side in ("reference", "stable") for key in Bounds().drift.stable.__dataclass_fields__
    },
    "guards.margin": guard("guards.margin"),
    "guards.margins": guard("guards.margins"),
    "behaviour.calibration": release(
        "behaviour.calibration", 0.2, {"calibration": 0.2}, {"calibration": 0.201}),
    "behaviour.canaries": canaries,
    "rate.releases_per_day": held("rate.releases_per_day", 1, lambda court: court.later(days=1)),
    "rate.cycles_between_nominations": held(
        "rate.cycles_between_nominations", 2, lambda court: court.move_working(court.text_model("between"))),
    "rate.dwell_seconds": held("rate.dwell_seconds", 60.0, lambda court: court.later(seconds=60)),
    "rate.drift_per_week": week,
    "rate.rollbacks_per_week": sign(
        "rate.rollbacks_per_week", 2, Signs(rollbacks_this_week=2), Signs(rollbacks_this_week=3)),
    "resources.job_seconds": job_seconds,
    "resources.min_disk_free_gib": sign(
        "resources.min_disk_free_gib", 5.0, Signs(disk_free_gib=5.0), Signs(disk_free_gib=4.9)),
    "resources.gpu_hours_per_day": sign(
        "resources.gpu_hours_per_day", 2.0, Signs(gpu_hours_today=1.99), Signs(gpu_hours_today=2.0)),
    "resources.seconds_per_day": sign(
        "resources.seconds_per_day", DAY, Signs(seconds_today=DAY - 1), Signs(seconds_today=DAY)),
    "resources.energy_kwh_per_day": sign(
        "resources.energy_kwh_per_day", 1.0, Signs(joules_today=3.59e6), Signs(joules_today=3.6e6)),
    "serving.latency_ratio": serving("latency_ratio", 1.5, 1.5, 1.51),
    "serving.speed_ratio": serving("speed_ratio", 0.8, 0.8, 0.79),
    "serving.memory_ratio": serving("memory_ratio", 1.2, 1.2, 1.21),
    "serving.latency_ms": serving("latency_ms", 20.0, 20.0, 20.1),
    "serving.tokens_per_second": serving("tokens_per_second", 100.0, 100.0, 99.0),
    "serving.memory_gib": serving("memory_gib", 2.0, 2.0, 2.01),
    "supply.licences": given("supply.licences", ["mit"], lambda m: (m / "README.md").unlink(), "supply.licences"),
    "supply.formats": given(
        "supply.formats", ["safetensors"], lambda m: shutil.copy(m / "config.json", m / "model.bin"), "safetensors"),
    "supply.remote_code": given(
        "supply.remote_code", False, lambda m: (m / "config.json").write_text('{"auto_map": {}}'), "auto_map"),
    "supply.parents": parents,
    "gate.alpha": alpha,
    "gate.d0": gain,
    "gate.least_gain": least,
    "gate.max_noise": release("gate.max_noise", 0.01, {"noise": 0.01}, {"noise": 0.02}),
    "code.modules": tampered(
        "code.modules", lambda court, checkout: (checkout / "safety" / "bounds.py").write_text("MAX = 2\n")),
    "code.vault": tampered("code.vault", edit_vault),
    "code.bounds": tampered("code.bounds", loosen),
    "breaker.consecutive_failures": sign(
        "breaker.consecutive_failures", 2, Signs(("CRASHED", "REJECTED")), Signs(("CRASHED", "TIMED_OUT"))),
    "breaker.stop_file": sign("breaker.stop_file", "HALT", Signs(), Signs(stop_file=True)),
}
SAID = {                   # where the answer names what it is about instead of one of its two ends
    "search.min_weight": "search.weight", "search.max_weight": "search.weight",
    "search.min_scale": "search.scale", "search.max_scale": "search.scale",
    "pipeline.min_learning_rate": "pipeline.learning_rate", "pipeline.max_learning_rate": "pipeline.learning_rate",
}


# Bounds that take a court, real workers or a simulation to bite: the tests in which they do, and by which word.
ELSEWHERE = {
    "resources.worker_memory_gib": ("tests/crash/test_escapes.py", "worker_memory_gib"),
    "resources.scratch_gib": ("tests/crash/test_escapes.py", "scratch_gib"),
    "resources.worker_processes": ("tests/crash/test_escapes.py", "worker_processes"),
    "sandbox.required": ("tests/unit/safety/test_sandbox.py", "required=True"),
    "sandbox.user": ("tests/unit/safety/test_sandbox.py", "sandbox.user"),
    "gate.approval": ("tests/system/test_watch_and_approval.py", 'approval = "required"'),
    "gate.procedure": ("tests/unit/safety/test_approval.py", 'procedure="e-lond"'),
    "gate.items": ("tests/unit/safety/test_approval.py", 'items="fresh"'),
    "gate.watch_alpha": ("tests/properties/test_false_rollbacks.py", "Terms(alpha"),
    "gate.watch_items": ("tests/unit/safety/test_recall.py", "watch_items"),
}


def test_every_bound_has_a_case_here_or_elsewhere() -> None:
    assert {name for name, _, _ in limits_of(Bounds())} == CASES.keys() | ELSEWHERE.keys()
    for name, (file, word) in ELSEWHERE.items():
        assert word in (ROOT / file).read_text(), name


@pytest.mark.parametrize("name", CASES)
def test_the_bound_lets_through_what_lies_inside_and_answers_to_what_does_not(tmp_path: Path, name: str) -> None:
    assert CASES[name](tmp_path / "inside", False) is None
    said = CASES[name](tmp_path / "outside", True)
    assert said is not None
    assert SAID.get(name, name) in said
