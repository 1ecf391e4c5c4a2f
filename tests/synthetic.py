"""A world without tensors for tests of the loops: a model is one small file that says how skilled it is.

Only the heavy work is make-believe. Ledger, registry, job book and bounds are the real ones, so a loop is driven the
way the daemon drives it. `SyntheticRunner` is deterministic in the job's spec, as real jobs are.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loops.cycle import House, run_cycle
from loops.loop import Loop
from loops.reward.shaping import Evidence
from safety.bounds import Bounds
from safety.yardstick.compare import paired
from state.database import Database
from state.jobbook import JobBook
from state.jobs import JobFailed, JobResult, JobSpec
from state.ledger import Ledger
from state.records import Budget, Channel, Cost, Entry, Event, JsonObject, Outcome, digest_of
from state.registry import Registry

PROBE = 64
ALLOWED = replace(Bounds(), pipeline=replace(Bounds().pipeline, stages=("sft", "dpo", "grpo")))
BUDGET = Budget(1e6, 10**9, 1000)

Learns = Callable[[JobSpec, float, int], float]
"""(spec, skill before, steps) -> skill after."""


def steady(spec: JobSpec, skill: float, steps: int) -> float:
    """Supervised training helps by its learning rate; a segment helps a little, more under a shaping."""
    if spec.kind in ("train", "prefer"):
        return min(0.95, skill + steps * spec.params["recipe"]["learning_rate"])
    shaped = spec.params["shaping"]["strength"] > 0 and bool(spec.params["shaping"]["weights"])
    return min(0.95, skill + steps * (0.004 if shaped else 0.002))


class SyntheticRunner:
    """Runs make-believe jobs. `learns` says what training does; `faults` may raise before a job runs.

    A row has ten tokens, an answer with its prompt at most ten; like the real jobs these keep to `max_tokens`.
    `found_pairs` is how many pairs any model makes, at a token a prompt; None: it goes by the model's skill.
    """

    def __init__(self, registry: Registry, book: JobBook, learns: Learns = steady) -> None:
        self.registry, self.book, self.learns = registry, book, learns
        self.faults: Callable[[JobSpec], None] = lambda spec: None
        self.adjust: Callable[[JobSpec, JsonObject], JsonObject] = lambda spec, values: values
        self.found_pairs: int | None = None
        self.ran: list[JobSpec] = []
        self.pays: dict[str, float] = {}
        self.emptied: set[str] = set()

    def run(self, spec: JobSpec, *, timeout_seconds: float | None = None) -> JobResult:
        known = self.book.result(spec.digest)
        if known is not None:
            return known
        self.faults(spec)
        self.ran.append(spec)
        result: JobResult = getattr(self, spec.kind)(spec)
        self.book.finished(spec, result)
        return result

    def run_all(self, specs: Sequence[JobSpec], *, timeout_seconds: float | None = None) -> list[Any]:
        return [self._caught(spec) for spec in specs]

    def _caught(self, spec: JobSpec) -> JobResult | JobFailed:
        try:
            return self.run(spec)
        except JobFailed as failure:
            return failure

    def train(self, spec: JobSpec) -> JobResult:
        asked, step_tokens = spec.params["to_step"] - spec.params["from_step"], spec.params["recipe"]["batch"] * 10
        steps = min(asked, max(0, spec.params["max_tokens"] // step_tokens))
        if not steps:
            return nothing_done(spec)
        tokens = steps * step_tokens
        named = [name.removeprefix("data:") for name in spec.inputs if name.startswith("data:")]
        sources = {name: {"rows": tokens // 20, "tokens": tokens // 2, "loss_drop": 0.1} for name in named}
        values = {"steps": steps, "tokens": tokens, "loss_first": 2.0, "loss_last": 1.0,
                  "stopped": "no tokens" if steps < asked else None, "sources": sources, "learned": {}}
        return self._trained(spec, steps, spec.params["from_step"] + steps, values, tokens)

    prefer = train

    def segment(self, spec: JobSpec) -> JobResult:
        asked, recipe = spec.params["steps"], spec.params["recipe"]
        alike = [spec.seed, spec.inputs["model"], spec.params["shaping"]]            # before a pause and after it
        completions, lengths = recipe["batch"] * recipe["group"], random.Random(digest_of(alike))
        until, steps, tokens = spec.params["pause"] or asked, 0, 0
        while steps < until and tokens + 10 * completions <= spec.params["max_tokens"]:
            steps, tokens = steps + 1, tokens + lengths.randint(6, 10) * completions
        if not steps:
            return nothing_done(spec)
        begun = self.told(spec.inputs["paused"], "paused")["tokens"] if "paused" in spec.inputs else 0
        before, after = self.skill(spec.inputs["model"]), self.learns(spec, self.skill(spec.inputs["model"]), steps)
        draw = random.Random(spec.params["probe_seed"])
        noise = [draw.gauss(0, 0.01) for _ in range(PROBE)]
        truth = [before + (after - before) * i / steps for i in range(steps)]
        values = {
            "evidence": evidence_after(spec.params["evidence"], before), "success": before, "groups": 8 * steps,
            "mixed_groups": 9, "proxy": truth, "truth": truth, "shaping_trace": [0.0] * steps,
            "rank_correlation": 0.4, "q_before": [before + n for n in noise],
            "q_after": [after + n + draw.gauss(0, 0.005) for n in noise], "kl": 0.1, "steps": steps,
            "cut": asked - steps if steps < until else 0, "stopped": "no tokens" if steps < until else None,
            "tokens": tokens, "prompts": recipe["batch"] * steps, "asked": {
                task["name"]: {"prompts": len(range(number, recipe["batch"] * steps, len(spec.params["tasks"]))),
                               "success": before}
                for number, task in enumerate(spec.params["tasks"])
            }, "replayed": {
                name[5:]: {"rows": 48 * steps, "tokens": 480 * steps} for name in spec.inputs if name[:5] == "data:"
            },
        }
        made = self._trained(spec, steps, spec.params["from_step"] + steps, values, tokens - begun)
        if steps == spec.params["pause"]:
            paused = self.keep("checkpoint", f"paused-{spec.digest[:16]}", {"tokens": tokens, "made_by": spec.digest})
            made = replace(made, outputs={**made.outputs, "checkpoint:paused": paused})
        return made

    def pairs(self, spec: JobSpec) -> JobResult:
        """As many pairs as prompts where the model is neither always right nor always wrong, or `found_pairs`."""
        asked = spec.params["prompts"]
        step = 10 * spec.params["samples"] if self.found_pairs is None else 1
        prompts = min(asked, spec.params["max_tokens"] // step)
        skill = self.skill(spec.inputs["model"])
        found = (prompts if 0.05 < skill < 0.95 else 0) if self.found_pairs is None else self.found_pairs
        values = {
            "prompts": prompts, "mixed": found, "pairs": found, "from_references": 0, "success": skill,
            "tokens": prompts * step, "stopped": "no tokens" if prompts < asked else None,
        }
        outputs = {"pairs": self.keep("data", f"pairs-{spec.digest[:16]}", {"made_by": spec.digest})} if found else {}
        return JobResult(self.adjust(spec, values), outputs, Cost(1.0, tokens=prompts * step))

    def reward_model(self, spec: JobSpec) -> JobResult:
        values = {"pairs": 30, "steps": spec.params["steps"], "tokens": 100, "held_out": 20, "accuracy": 0.9,
                  "r_ref": 0.0, "stopped": None}
        made = self.keep("model", f"reward-{spec.digest[:16]}", {"made_by": spec.digest})
        return JobResult(self.adjust(spec, values), {"model": made}, Cost(1.0, tokens=100))

    def reward_check(self, spec: JobSpec) -> JobResult:
        values = {"pairs": 40, "prompts": 10, "accuracy": 0.9, "tokens": 100}
        return JobResult(self.adjust(spec, values), {}, Cost(1.0, tokens=100))

    def weigh(self, spec: JobSpec) -> JobResult:
        named = sorted(name.removeprefix("data:") for name in spec.inputs if name.startswith("data:"))
        each = min(spec.params["steps"] * spec.params["recipe"]["batch"] * 10, spec.params["max_tokens"] // len(named))
        gains = {name: self.pays.get(name, 0.01) for name in named} if each else {}
        weighed = {name: {"gain": gain, "error": 0.001, "rows": each // 10, "tokens": each}
                   for name, gain in gains.items()}
        values = {"weighed": weighed, "steps": spec.params["steps"], "tokens": each * len(weighed)}
        return JobResult(self.adjust(spec, values), {}, Cost(1.0, tokens=each * len(weighed)))

    def select(self, spec: JobSpec) -> JobResult:
        named = sorted(name for name in spec.inputs if name.startswith("data:"))
        left = [name for name in named if name.removeprefix("data:") not in self.emptied]
        outputs = {name: self.keep("data", f"rows-{name[5:]}-{spec.digest[:16]}", {"made_by": spec.digest})
                   for name in left}
        sources = {name[5:]: {"rows": 100, "kept": 90 if name in left else 0,
                              "dropped": {"duplicate": 10 if name in left else 100}} for name in named}
        return JobResult({"sources": sources}, outputs, Cost(1.0))

    def compare(self, spec: JobSpec) -> JobResult:
        draw = random.Random(spec.params["seed"])
        levels = [draw.random() for _ in range(spec.params["count"])]
        skills = [self.skill(spec.inputs[name]) for name in ("model:new", "model:old")]
        new, old = ([float(level < skill) for level in levels] for skill in skills)
        return JobResult({"pooled": paired(new, old).to_json()}, {}, Cost(1.0, items=2 * len(levels)))

    def measure(self, spec: JobSpec) -> JobResult:
        facts = {
            "non_finite": 0, "parameters": 1, "layers": 1, "file_gib": 0.0, "dtypes": [], "vocabulary": 1, "hidden": 1,
            "intermediate": 1, "model_type": "llama", "loads_code": [],
        }
        return JobResult({"model": facts, "drift": {}}, {}, Cost(1.0))

    def skill(self, digest: str) -> float:
        return float(self.told(digest, "skill")["skill"])

    def told(self, digest: str, name: str) -> JsonObject:
        body: JsonObject = json.loads((self.registry.path(digest) / f"{name}.json").read_text())
        return body

    def keep(self, kind: str, name: str, body: JsonObject) -> str:
        folder = self.registry.root / "made" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name.split('-')[0]}.json").write_text(json.dumps(body))
        return self.registry.adopt(folder, kind)

    def _trained(self, spec: JobSpec, steps: int, step: int, values: JsonObject, tokens: int) -> JobResult:
        found = spec.inputs.get("checkpoint")
        stands = self.told(found, "step")["step"] if found else 0
        first = spec.params["from_step"]
        assert stands == first, f"the checkpoint stands at {stands}, asked for is {first}"
        after = self.learns(spec, self.skill(spec.inputs["model"]), steps)
        outputs = {
            "model": self.keep("model", f"skill-{spec.digest[:16]}", {"skill": after, "made_by": spec.digest}),
            "checkpoint": self.keep("checkpoint", f"step-{spec.digest[:16]}", {"step": step, "made_by": spec.digest}),
        }
        return JobResult(self.adjust(spec, values), outputs, Cost(float(steps), tokens=tokens))


def nothing_done(spec: JobSpec) -> JobResult:
    """What a training job gives whose tokens do not suffice for a step."""
    return JobResult({"steps": 0, "tokens": 0, "stopped": f"{spec.params['max_tokens']} tokens"}, {}, Cost(1.0))


def evidence_after(body: JsonObject, success: float) -> JsonObject:
    """Ten groups in which the first feature alone tells right from wrong, at the given success."""
    evidence, draw = Evidence.from_json(body), random.Random(0)
    for _ in range(10):
        others = [0.25] * (len(evidence.features) - 1)
        rows = [([draw.random() * 0.5, *others], success) for _ in range(8)]
        evidence = evidence.add_group(rows, [1.0, *others])
    return evidence.to_json()


class World:
    """A state folder with one model in it, and a house in which loops can be run."""

    def __init__(self, folder: Path, skill: float = 0.3, learns: Learns = steady) -> None:
        folder.mkdir(exist_ok=True)
        self.database = Database(folder / "kaizend.db")
        self.database.migrate()
        self.registry = Registry(folder, self.database)
        self.ledger = Ledger(self.database, self.registry)
        self.runner = SyntheticRunner(self.registry, JobBook(self.database), learns)
        self.start = self.runner.keep("model", "skill-start", {"skill": skill})
        self.ledger.append(Entry(Event.GENESIS, "a start"), move=(Channel.WORKING, self.start))
        self.house = House(self.ledger, self.runner, lambda: ALLOWED, "code", 7)

    def cycle(
        self, loop: Loop, ordinal: int, incumbent: str | None = None, budget: Budget = BUDGET, base: str | None = None
    ) -> Outcome:
        """One root cycle on the first model, or on `base`, against `incumbent`, which is made working."""
        incumbent = incumbent or base or self.start
        if self.ledger.channel(Channel.WORKING) != incumbent:
            self.ledger.append(Entry(Event.OPERATOR, "another test"), move=(Channel.WORKING, incumbent))
        return run_cycle(self.house, loop, None, ordinal, base or self.start, incumbent, budget)

    def state(self, loop: Loop) -> JsonObject:
        found = self.ledger.loop_state(loop.name)
        assert found is not None
        return found

    def close(self) -> None:
        self.database.close()
