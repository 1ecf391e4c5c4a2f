"""Job "serve": what serving one model costs against another, both in memory on one machine in one run.

Fixed prompts, greedy, every answer of the same length, the two models in turn, the order changing from round to
round; what counts is each model's best round, because whatever else a machine does can only make one slower, and
there are rounds until the best no longer get better. The one job whose values depend on the machine it ran on; they
are kept like any others, so that a nomination is judged once. Memory is that of weights and buffers as loaded: caches
and activations are not in it. Not here: the limits (`safety.bounds`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import GenerationConfig

from safety.drift import probe
from safety.yardstick.items import Item
from safety.yardstick.scoring import Scored, encode_items, load_model, pad_id
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject

ROUNDS = 5          # in which no model got better: enough
MOST_ROUNDS = 60
BETTER = 0.97       # a best time that is this share of the best before
TOKENS = 4          # of each answer
TOGETHER = 8        # prompts that are answered at once; the first of them alone as well
Round = Mapping[str, tuple[float, float]]
"""What `times` gave for each model."""


def serve(spec: JobSpec, desk: Desk) -> Produced:
    """The job. Inputs: new, old, seal beside tasks; params as of job "measure" for the probe, whose prompts are used.

    Values: latency_ratio, speed_ratio and memory_ratio (new over old), latency_ms (per token, one request),
    tokens_per_second (many requests at once) and memory_gib of the new model. Raises ValueError without prompts.
    """
    items = probe(spec, desk)
    if not items:
        raise ValueError("there are no prompts to serve")
    models = {name: load_model(desk.inputs[name], desk.device) for name in ("new", "old")}
    for model in models.values():
        answer(model, items[:TOGETHER])                                          # the first call of a model is slow
    rounds: list[Round] = []
    while not settled(rounds):
        order = ("new", "old") if len(rounds) % 2 else ("old", "new")
        rounds.append({name: times(models[name], items) for name in order})
        desk.progress(len(rounds) / MOST_ROUNDS, "answering in turn")
    return Produced(measured(rounds, {name: model.model.get_memory_footprint() for name, model in models.items()}))


def settled(rounds: Sequence[Round]) -> bool:
    """Whether the last ROUNDS brought no model a clearly better best, or there were MOST_ROUNDS."""
    before = rounds[:-ROUNDS]
    if not before or len(rounds) >= MOST_ROUNDS:
        return bool(before)
    (latency, speed), (earlier, slower) = best(rounds), best(before)
    return all(latency[name] > BETTER * earlier[name] and BETTER * speed[name] < slower[name] for name in latency)


def best(rounds: Sequence[Round]) -> tuple[dict[str, float], dict[str, float]]:
    """The smallest latency and the greatest speed of each model."""
    latency = {name: min(entry[name][0] for entry in rounds) for name in ("new", "old")}
    return latency, {name: max(entry[name][1] for entry in rounds) for name in ("new", "old")}


def measured(rounds: Sequence[Round], memory: dict[str, int]) -> JsonObject:
    """The values from what `times` gave in each round, by model, and from the bytes of each model."""
    latency, speed = best(rounds)
    return {
        "latency_ratio": latency["new"] / latency["old"], "speed_ratio": speed["new"] / speed["old"],
        "memory_ratio": memory["new"] / memory["old"],
        "latency_ms": 1000 * latency["new"], "tokens_per_second": speed["new"], "memory_gib": memory["new"] / 2**30,
    }


def times(scored: Scored, items: Sequence[Item]) -> tuple[float, float]:
    """Seconds per token of a single request, and tokens per second of many at once."""
    began = time.perf_counter()
    answer(scored, items[:1])
    between = time.perf_counter()
    answer(scored, items[:TOGETHER])
    ended = time.perf_counter()
    return (between - began) / TOKENS, TOKENS * len(items[:TOGETHER]) / (ended - between)


def answer(scored: Scored, items: Sequence[Item]) -> Any:
    """TOKENS tokens after each prompt, padded on the left. Back on the host, so that the device is done."""
    prompts = [prompt for prompt, _ in encode_items(scored.tokenizer, [(item.prompt, item.answer) for item in items])]
    pad = pad_id(scored.tokenizer)
    batch = scored.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    settings = GenerationConfig(
        do_sample=False, min_new_tokens=TOKENS, max_new_tokens=TOKENS, pad_token_id=pad,
        eos_token_id=scored.tokenizer.eos_token_id,
    )
    return scored.model.generate(**batch.to(scored.model.device), generation_config=settings).cpu()
