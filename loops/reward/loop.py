"""The reward loop: one cycle carries reinforcement on for one segment, under a shaping or under none.

The shaping follows from the state (ALGORITHMS 7): zero unless success is very rare and the evidence speaks. A shaping
runs beside a zero-shaping control with the same seeds and is kept only where it is clearly better; where q is measured
both pause after a few steps, and the better one alone goes on. A shaping that was better goes on as it is, alone, for
some segments; one that was not makes room for zero shaping, for longer each time. A segment is promoted only if q rose
clearly. Training goes on from every segment that is sound, promoted or not: where success is rare, q stands still for
long before it rises. From one that is not it goes back, with another seed. The strict reward, the cap, the thresholds
and the monitor are not part of any candidate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Final

from loops.loop import Bench, Trial
from loops.reward import levels
from loops.reward.arms import Weighing, expected_success, traces, weigh
from loops.reward.catalogue import sources
from loops.reward.features import LEARNED, USUAL
from loops.reward.learned import bounded, prepared, without
from loops.reward.shaping import ZERO, Evidence, Shaping, Switch, annealed
from state.jobs import JobFailed, JobResult, JobSpec
from state.records import Candidate, JsonObject, LoopName, Outcome, Verdict

STRONGEST: Final = 0.4
"""Upper limit of B0; the cap on any strength is .5 (`shaping.CAP`)."""
STRIKES: Final = 3
AVOIDED_SEGMENTS: Final = 10
HEAT_STEPS: Final = 8
"""A shaping and its control run side by side for so many steps of a segment, where q is measured."""
PROVEN_SEGMENTS: Final = 8
"""A shaping that was clearly better than its control runs so many segments without one, where q is measured."""
RESTING_SEGMENTS: Final = 1
"""One that was not clearly better leaves so many segments to zero shaping, and twice as many each time that the next
comparison ends so, too.
"""
NEAR: Final = 0.2
"""Shapings whose weights differ by less (sum of absolute differences) count as the same."""
HISTORY: Final = 4


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """What the operator chooses.

    `features` may enter a shaping where references exist, `approved` where none do; `references` says whether the
    target tasks have one right answer each; `strength` is B0 (at most .4); `probe_items` is the size of the q probe.

    `learned` adds the feature of that name (`loops.reward.learned`): its reward model is made anew every
    `learned_every` segments in which shaping is on, from answers to `pair_prompts` prompts.

    `levels` gives targets easier configs to be asked with, from easy to hard (`loops.reward.levels`).
    """

    features: tuple[str, ...] = USUAL
    approved: tuple[str, ...] = ()
    references: bool = True
    strength: float = STRONGEST
    probe_items: int = 256
    learned: bool = False
    learned_every: int = 8
    pair_prompts: int = 256
    levels: dict[str, tuple[dict[str, Any], ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sources({*self.features, *self.approved})                       # unknown ones are refused
        if LEARNED in {*self.features, *self.approved}:
            raise ValueError("learned is not listed as a feature: say learned = true")
        Evidence.empty(self.allowed)                                    # at most eight
        if not 0 <= self.strength <= STRONGEST:
            raise ValueError(f"strength must be between 0 and {STRONGEST}")
        if self.probe_items < 2:
            raise ValueError("probe_items must be at least 2")
        if self.learned_every < 1 or self.pair_prompts < 2:
            raise ValueError("learned_every must be at least 1 and pair_prompts at least 2")
        levels.check_levels(self.levels)

    @property
    def allowed(self) -> tuple[str, ...]:
        listed = self.features if self.references else self.approved
        return (*listed, LEARNED) if self.learned else listed


@dataclass(frozen=True, slots=True)
class RewardLoop:
    """Satisfies `loops.loop.Loop` once `on` has told it which segment to run.

    `targets` are task specs as JSON, `seal` the digest of the sealed item ids, `sources` the data sources of the
    replay term (name -> digest), unless the `assignment` brings others. That is {"recipe", "checkpoint", "from_step",
    "steps", "segment", "lineage"} and may have "sources".
    """

    settings: RewardSettings
    targets: Sequence[JsonObject]
    seal: str
    sources: Mapping[str, str]
    assignment: JsonObject = field(default_factory=dict)

    @property
    def name(self) -> LoopName:
        return LoopName.REWARD

    def on(self, assignment: JsonObject) -> RewardLoop:
        """The same loop, about to run one segment of the given recipe."""
        return replace(self, assignment=assignment)

    def start(self) -> JsonObject:
        return {
            "segments": 0, "evidence": Evidence.empty(self.settings.allowed).to_json(), "switch": str(Switch.OFF),
            "scale": 1.0, "strikes": 0, "avoid": [], "blocked": [], "best": None, "history": [],
            "learned": None, "proven": None, "resting": 0, "setbacks": 0, "levels": {},
        }

    def propose(
        self, state: JsonObject, base: str, incumbent: str, seed: int, in_flight: Sequence[Candidate] = ()
    ) -> Candidate:
        task = self.assignment
        shaping = self.shaping(state, task["from_step"], task["recipe"]["steps"])
        change = {
            "shaping": shaping.to_json(), "recipe": task["recipe"], "model": base, "checkpoint": task["checkpoint"],
            "from_step": task["from_step"], "steps": task["steps"], "segment": task["segment"],
            "lineage": task["lineage"], "control": shaping.is_zero or shaping.weights != self._proven(state),
        }
        if "sources" in task:
            change["sources"] = task["sources"]
        if brought := sources(self.settings.allowed):
            change["features"] = brought
        if asked := levels.chosen(self.settings.levels, self.targets, state):
            change["levels"] = asked
        return Candidate(self.name, change, base, incumbent)

    def shaping(self, state: JsonObject, step: int, horizon: int) -> Shaping:
        """The shaping that the state calls for at one step; zero unless everything speaks for it."""
        if state["switch"] != Switch.ON or frozen(state) or state["segments"] < state.get("resting", 0):
            return ZERO
        strength = annealed(self.settings.strength * state["scale"], step, horizon)
        if proven := self._proven(state):
            return Shaping(proven, strength)
        evidence = self._evidence(state)
        blocked = set(state["blocked"])
        for _ in range(len(state["avoid"]) + 1):
            shaping = Shaping(bounded(evidence.weights(set(self.settings.allowed) - blocked)), strength)
            if shaping.is_zero:
                return ZERO
            if not any(_near(shaping.weights, avoided["weights"]) for avoided in state["avoid"]):
                return shaping
            blocked.add(str(shaping.heaviest))
        return ZERO

    def _proven(self, state: JsonObject) -> dict[str, float] | None:
        """The weights that were lately better than a control, as long as q can tell without one if they no longer are.
        """
        proven = state.get("proven")
        if not proven or not self.settings.references or state["segments"] >= proven["until"]:
            return None
        return dict(proven["weights"]) if proven["weights"].keys() <= set(self.settings.allowed) else None

    def run(self, candidate: Candidate, bench: Bench) -> Trial:
        state = bench.cycle.state
        learned = self._learned(candidate.change, state, bench)
        shaping = _carried_out(candidate.change, learned)
        tried = {"zero": ZERO} if shaping.is_zero or candidate.change.get("control", True) else {}
        tried |= {} if shaping.is_zero else {"shaped": shaping}
        heat = len(tried) > 1 and self.settings.references and candidate.change["steps"] > HEAT_STEPS
        max_tokens, pause = bench.left.tokens // len(tried), HEAT_STEPS if heat else None
        specs = {
            name: self.spec(candidate.change, each, max_tokens, learned, bench, pause) for name, each in tried.items()
        }
        results = bench.jobs(list(specs.values()))
        arms = {name: arm_of(result) for name, result in zip(specs, results, strict=True)}
        _stop_if_failed(next(iter(arms.values())))
        values = self._values(arms, candidate, state, learned)
        while "paused" in arms[kept := _weighed(values).arm]:
            (result,) = bench.jobs([_rest_of(specs[kept], arms[kept], bench.left.tokens)])
            whole = arm_of(result)
            if kept == "zero":
                _stop_if_failed(whole)
            arms[kept] = whole if "failed" in whole else {**whole, "heat": arms[kept]["values"]}
            values = self._values(arms, candidate, state, learned)
        return Trial(arms[kept]["model"], values)

    def _values(
        self, arms: Mapping[str, JsonObject], candidate: Candidate, state: JsonObject, learned: JsonObject | None
    ) -> JsonObject:
        best = state["best"] if state["best"] and state["best"]["lineage"] == candidate.change["lineage"] else None
        history = [] if levels.moved(state, candidate.change) else state["history"]
        return {
            "arms": dict(arms), "best_q": best["q"] if best else None,
            "history": _lengthened(history, arms.get("shaped")), "learned": learned,
        }

    def judge(self, candidate: Candidate, trial: Trial) -> Outcome:
        """PROMOTED where the kept arm's q rose by more than one standard error; evidence names the arm and why."""
        weighing = _weighed(trial.values)
        arms = trial.values["arms"]
        kept, shaped = arms[weighing.arm], arms.get("shaped")
        values = kept["values"]
        q = expected_success(values)
        learned = trial.values["learned"]
        heaviest = _carried_out(candidate.change, learned).heaviest
        evidence = {
            "arm": weighing.arm, "gain": weighing.gain.to_json(),
            "over_zero": weighing.over_zero.to_json() if weighing.over_zero else None,
            "alarms": [alarm.to_json() for alarm in weighing.alarms], "guard": weighing.guard,
            "blocked": heaviest if weighing.guard else None, "q_before": expected_success(values, "q_before"),
            "q_after": q, "best_q": trial.values["best_q"],
            "shaped_failed": shaped.get("failed") if shaped else None, "learned": learned,
            "trace": traces(arms),
            "data": {
                name: {"digest": _replayed(candidate.change, self.sources).get(name), **used}
                for name, used in values.get("replayed", {}).items()
            },
            "tasks": [task["name"] for task in self.targets],
            "prompts": values.get("prompts"), "asked": levels.told(candidate.change, values),
            **{key: values.get(key) for key in ("success", "groups", "mixed_groups", "kl", "steps", "stopped")},
        }
        lesson = {
            "model": kept["model"], "checkpoint": kept["checkpoint"], "sound": weighing.sound,
            "steps": values.get("steps", candidate.change["steps"]),
            "cut": values.get("cut", 0), "evidence": values.get("evidence") if weighing.believed else None,
            "q": q, "history": trial.values["history"], "learned": learned if weighing.believed else None,
            "asked": values.get("asked") if weighing.believed else None,
        }
        verdict = Verdict.PROMOTED if weighing.accepted else Verdict.REJECTED
        result = kept["model"] if weighing.accepted else None
        return Outcome(verdict, _reason(weighing, learned), result, evidence, lesson)

    def learn(self, state: JsonObject, candidate: Candidate, outcome: Outcome) -> JsonObject:
        seen, lesson = outcome.evidence, outcome.lesson
        shaping = Shaping.from_json(candidate.change["shaping"])
        if "learned" in seen:
            shaping = _carried_out(candidate.change, seen["learned"])
        segments = state["segments"] + 1
        alarmed = bool(seen.get("alarms"))
        shunned = not shaping.is_zero and (
            alarmed or bool(seen.get("shaped_failed")) or outcome.verdict not in (Verdict.PROMOTED, Verdict.REJECTED)
        )
        avoid = [entry for entry in state["avoid"] if entry["until"] > segments]
        if shunned:
            avoid.append({"weights": dict(shaping.weights), "until": segments + AVOIDED_SEGMENTS})
        evidence = lesson.get("evidence") or state["evidence"]
        success = Evidence.from_json(evidence).success
        blocked = {*state["blocked"], *([seen["blocked"]] if seen.get("blocked") else [])}
        return {
            "segments": segments, "evidence": evidence, "switch": str(Switch(state["switch"]).after(success)),
            "scale": state["scale"] / 2 if alarmed else state["scale"], "strikes": state["strikes"] + alarmed,
            "avoid": avoid, "blocked": sorted(blocked), "best": _best(state["best"], candidate, outcome),
            "history": [] if alarmed else lesson.get("history", state["history"]),
            "learned": lesson.get("learned") or state.get("learned"),
            "levels": levels.learned(
                state, candidate.change, lesson.get("asked"), self.targets, self.settings.levels, segments
            ),
            **_standing(state, shaping, segments, outcome),
        }

    def _evidence(self, state: JsonObject) -> Evidence:
        evidence = Evidence.from_json(state["evidence"])
        known = evidence.features == Evidence.empty(self.settings.allowed).features
        return evidence if known else Evidence.empty(self.settings.allowed)       # the operator changed the list

    def _learned(self, change: JsonObject, state: JsonObject, bench: Bench) -> JsonObject | None:
        """The reward model of this segment, None where nothing asks for one."""
        if not self.settings.learned or state["switch"] != Switch.ON or frozen(state):
            return None
        asked = {"tasks": list(self.targets), "prompts": self.settings.pair_prompts}
        return prepared(
            state.get("learned"), LEARNED in change["shaping"]["weights"], self.settings.learned_every,
            state["segments"], asked, {"model": change["model"], "seal": self.seal}, bench,
        )

    def spec(
        self, change: JsonObject, shaping: Shaping, max_tokens: int, learned: JsonObject | None, bench: Bench,
        pause: int | None = None,
    ) -> JobSpec:
        """One arm. Both arms have the same seeds and tokens, pause together, and differ in nothing but the shaping."""
        inputs = {"model": change["model"], "seal": self.seal}
        evidence = self._evidence(bench.cycle.state)
        if learned and learned["model"] is not None:
            inputs["reward_model"] = learned["model"]
            evidence = evidence.forgetting(LEARNED) if learned["trained"] else evidence
        inputs |= {f"data:{name}": digest for name, digest in sorted(_replayed(change, self.sources).items())}
        if change["checkpoint"] is not None:
            inputs["checkpoint"] = change["checkpoint"]
        params = {
            "recipe": change["recipe"], "shaping": shaping.to_json(), "tasks": list(self.targets),
            "steps": change["steps"], "from_step": change["from_step"],
            "evidence": evidence.to_json(),
            "probe_seed": bench.seed("probe"), "probe_items": self.settings.probe_items,
            "proxy_strength": STRONGEST, "references": self.settings.references,
            "max_tokens": max_tokens, "pause": pause,
        }
        if asked := levels.asked(change):
            params["levels"] = asked
        if "features" in change:
            params["features"] = change["features"]              # another version of a package is another job
        return bench.spec("segment", inputs, params, bench.seed("segment"))


def frozen(state: JsonObject) -> bool:
    """Three alarms: no shaping until the operator re-arms the loop. Segments without one go on."""
    return bool(state.get("strikes", 0) >= STRIKES)


def rearm(state: JsonObject) -> JsonObject:
    """The state after the operator re-armed the loop: strikes, avoided and blocked shapings are forgotten."""
    return {**state, "strikes": 0, "scale": 1.0, "avoid": [], "blocked": [], "history": []}


def _carried_out(change: JsonObject, learned: JsonObject | None) -> Shaping:
    """The shaping that a segment ran under: the proposed one, the learned feature left out where it must not pay."""
    shaping = Shaping.from_json(change["shaping"])
    return without(shaping) if learned is None or learned["left_out"] else shaping


def _standing(state: JsonObject, shaping: Shaping, segments: int, outcome: Outcome) -> JsonObject:
    """Which shaping may go without a control, and until when there is none, after a segment under this one."""
    seen = outcome.evidence
    stands = {"proven": state.get("proven"), "resting": state.get("resting", 0), "setbacks": state.get("setbacks", 0)}
    if shaping.is_zero:
        return stands
    if seen.get("alarms") or seen.get("guard") or seen.get("arm") is None:
        return {**stands, "proven": None}
    if seen.get("over_zero") is None:                                   # it had no control
        return stands
    if seen["arm"] == "shaped":
        proven = {"weights": dict(shaping.weights), "until": segments + PROVEN_SEGMENTS}
        return {**stands, "proven": proven, "setbacks": 0}
    rest = RESTING_SEGMENTS * 2**stands["setbacks"]
    return {"proven": None, "resting": segments + rest, "setbacks": stands["setbacks"] + 1}


def _replayed(change: JsonObject, sources: Mapping[str, str]) -> Mapping[str, str]:
    """The sources of a segment's replay: those that a recipe selected, where it did."""
    found: Mapping[str, str] = change.get("sources", sources)
    return found


def arm_of(result: JobResult | JobFailed) -> JsonObject:
    """What an arm came to; "paused" where it can go on from there."""
    if isinstance(result, JobFailed):
        return {"failed": str(result), "verdict": str(result.verdict)}
    if not result.outputs:                                              # no step fitted into its tokens
        return {"failed": result.values["stopped"], "verdict": str(Verdict.TIMED_OUT)}
    arm = {"model": result.outputs["model"], "checkpoint": result.outputs["checkpoint"], "values": result.values}
    return arm | ({"paused": result.outputs["checkpoint:paused"]} if "checkpoint:paused" in result.outputs else {})


def _rest_of(spec: JobSpec, arm: JsonObject, tokens: int) -> JobSpec:
    """The same arm from where it paused to the segment's end, with so many tokens more."""
    params = {**spec.params, "pause": None, "max_tokens": arm["values"]["tokens"] + tokens}
    return replace(spec, inputs={**spec.inputs, "paused": arm["paused"]}, params=params)


def _stop_if_failed(arm: JsonObject) -> None:
    if "failed" in arm:
        raise JobFailed(arm["failed"], Verdict(arm["verdict"]))


def _weighed(values: JsonObject) -> Weighing:
    return weigh(values["arms"], values["best_q"], [(proxy, truth) for proxy, truth in values["history"]])


def _lengthened(history: list[list[float]], arm: JsonObject | None) -> list[list[float]]:
    """The evaluations of shaped segments so far and this one: [proxy at constant B0, truth]."""
    if arm is None or "failed" in arm or not arm["values"]["truth"]:
        return history
    values = arm["values"]
    q, success = expected_success(values), fmean(values["truth"])
    return [*history, [fmean(values["proxy"] or [success]), success if q is None else q]][-HISTORY:]


def _best(best: JsonObject | None, candidate: Candidate, outcome: Outcome) -> JsonObject | None:
    """The highest accepted q of the lineage that the loop is working on."""
    q, lineage = outcome.lesson.get("q"), candidate.change["lineage"]
    if outcome.verdict is not Verdict.PROMOTED or q is None:
        return best
    if best is not None and best["lineage"] == lineage and best["q"] >= q:
        return best
    return {"lineage": lineage, "q": q, "model": outcome.result, "checkpoint": outcome.lesson["checkpoint"]}


def _near(weights: Mapping[str, float], others: Mapping[str, float]) -> bool:
    return math.fsum(abs(weights.get(name, 0.0) - others.get(name, 0.0)) for name in {*weights, *others}) < NEAR


def _reason(weighing: Weighing, learned: JsonObject | None) -> str:
    gain = f"{weighing.gain.mean:+.4f} with a standard error of {weighing.gain.stderr:.4f}"
    told = f"the {weighing.arm} arm's success moved by {gain}"
    if weighing.over_zero is not None:
        told += f"; the shaping gained {weighing.over_zero.mean:+.4f} over zero"
    if learned and learned["left_out"]:
        told += f"; the learned feature was left out: {learned['left_out']}"
    for warning in (*(alarm.seen for alarm in weighing.alarms), *([weighing.guard] if weighing.guard else [])):
        told += f"; {warning}"
    return told
