"""Job "measure": what a model is, and how far it moved from an earlier one.

Weights are compared tensor by tensor, each read when it is needed, in float32, a layer that stood elsewhere with the
layer it was (`counterparts`); behaviour on a probe of search items, both models in memory. Not here: the limits
(`safety.bounds`). Invariants: the same two folders give the same numbers; a number that is not finite comes out as
text, which no limit accepts; what cannot be compared is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from safety.adapters import WEIGHTS, adapter_facts, is_adapter
from safety.headers import EMBEDDING, TensorHeader, by_layer, facts_of, file_headers, tensor_headers, unlike
from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.scoring import Scored, encode_items, generate_texts, load_model, pad_id
from safety.yardstick.tasks import Seal, draw_some
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject, seed_from

ROUNDS = 10                # of the power iteration (ALGORITHMS 10)
FLOOR = 0.01               # root mean square below which a tensor counts as this large: zero tensors have no scale
PROBE_ROWS = 8
BINS = 10                  # of confidence, for calibration
CORNER = 64                # rows and columns of a matrix that show which layer it is
_Files = Callable[[str], Any]     # the open file that a tensor is in, by the tensor's name
GENERATED = 32             # probe items whose answer lengths are compared, at most, spread over all tasks


def measure(spec: JobSpec, desk: Desk) -> Produced:
    """The job. Inputs: result; like, the model whose tensors it must have, or that it is an adapter over; where drift
    is asked for base; seal beside tasks. Params: probe ([[prompt, answer]] or none), or tasks (TaskSpec JSON) with
    probe_items and probe_seed.

    Values: "model": what `facts_of` finds, non_finite (how many numbers), unlike (`safety.headers.unlike`, beside
    like); "drift": the keys of `safety.bounds.DriftBounds` that apply; "calibration": error and tokens, beside a probe.
    A model with non-finite weights is not run.
    """
    folder = desk.inputs["result"]
    adapts = "like" in desk.inputs and is_adapter(folder)
    headers = file_headers(folder / WEIGHTS) if adapts else tensor_headers(folder)
    broken = sum(
        int((~torch.isfinite(tensor)).sum()) for _, tensor in tensors(headers) if tensor.is_floating_point()
    )
    facts = {**(adapter_facts(folder, desk.inputs["like"]) if adapts else facts_of(folder)), "non_finite": broken}
    if "like" in desk.inputs and not adapts:
        facts["unlike"] = unlike(folder, desk.inputs["like"], bool(spec.params.get("any_depth")))
    drift: JsonObject = {}
    more: JsonObject = {}
    if "base" in desk.inputs and not broken:
        drift = weight_drift(tensor_headers(desk.inputs["base"]), headers, desk.device)
        desk.progress(0.5, "weights compared")
        items = probe(spec, desk)
        if items:
            after = load_model(folder, desk.device)
            drift |= behaviour_drift(load_model(desk.inputs["base"], desk.device), after, items)
            more["calibration"] = calibration(after, items)
    return Produced({"model": facts, "drift": {name: _sayable(value) for name, value in drift.items()}, **more})


def probe(spec: JobSpec, desk: Desk) -> list[Item]:
    """The probe set: what the params spell out, or search items of every task, fewer where a pool is small."""
    if "probe" in spec.params:
        return [Item.of(prompt, answer) for prompt, answer in spec.params["probe"]]
    count, seed = int(spec.params.get("probe_items", 0)), int(spec.params.get("probe_seed", 0))
    tasks, seal = [TaskSpec.from_json(body) for body in spec.params.get("tasks", ())], Seal.of(desk.inputs)
    return [item for task in tasks for item in draw_some(task, count, seed, seal)]


def tensors(headers: dict[str, TensorHeader]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors one after another, each read when it is asked for."""
    files: dict[Path, list[str]] = {}
    for name, header in headers.items():
        files.setdefault(header.file, []).append(name)
    for file, names in sorted(files.items()):
        with safe_open(file, framework="pt") as stream:
            for name in sorted(names):
                yield name, stream.get_tensor(name)


@dataclass(slots=True)
class Change:
    """Sums and maxima over the tensors that both models have in the same shape."""

    moved: float = 0.0
    size: float = 0.0
    tensor: float = 0.0
    spectral: float = 0.0
    rows: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, before: torch.Tensor, after: torch.Tensor) -> None:
        difference, floor = after - before, FLOOR * math.sqrt(before.numel())
        moved, size = _norm(difference), _norm(before)
        self.moved += moved**2
        self.size += size**2
        self.tensor = _larger(self.tensor, moved / max(size, floor))
        if before.ndim >= 2 and moved > 0:
            matrix, change = before.flatten(1), difference.flatten(1)
            scale = max(spectral_norm(matrix, name), FLOOR * math.sqrt(max(matrix.shape)))
            self.spectral = _larger(self.spectral, spectral_norm(change, name) / scale)
        if EMBEDDING.search(name):
            longest = [float(torch.linalg.vector_norm(t, dim=1).max()) for t in (before, after)]
            self.rows[name] = longest[1] / max(longest[0], 1e-12)


def weight_drift(base: dict[str, TensorHeader], result: dict[str, TensorHeader], device: str = "cpu") -> JsonObject:
    """Relative change of the weights; empty where no tensor of the result has a counterpart in the base."""
    with _reading(base) as before, _reading(result) as after:
        pairs = counterparts(base, result, before, after)
        if not pairs:
            return {}
        change = Change()
        for name, earlier in pairs.items():
            held = before(earlier).get_tensor(earlier), after(name).get_tensor(name)
            change.add(name, *(tensor.to(device, torch.float32) for tensor in held))
    drift: JsonObject = {
        "relative_frobenius": math.sqrt(change.moved) / max(math.sqrt(change.size), 1e-12),
        "tensor_frobenius": change.tensor, "spectral": change.spectral,
    }
    return drift | ({"embedding_norm": max(change.rows.values())} if change.rows else {})


def counterparts(
    base: dict[str, TensorHeader], result: dict[str, TensorHeader], before: _Files, after: _Files
) -> dict[str, str]:
    """The tensor of the base that each tensor of the result is to be compared with; what has none is left out.

    It is the one of its name and shape. But a layer that is less than half as far from a layer at another place, or has
    none at its own, counts as that one: so a path is measured by what became of its layers, not by where they stand.
    How far two layers are shows on a corner of each of their matrices.
    """
    (outside, layers), (known, earlier) = by_layer(result), by_layer(base)
    pairs = {n: n for n, header in outside.items() if n in known and known[n].shape == header.shape and header.count}
    corners = {layer: _corners(layer, tensors, before) for layer, tensors in earlier.items()}
    for layer, tensors in layers.items():
        shapes = {name: header.shape for name, header in tensors.items()}
        alike = [there for there, held in earlier.items() if shapes == {name: held[name].shape for name in held}]
        own = _corners(layer, tensors, after)
        far = {there: _apart(own, corners[there]) for there in alike}
        nearest = min(far, key=lambda there: (far[there], there), default=layer)
        if (layer in far and far[nearest] >= far[layer] / 2) or not far:
            nearest = layer
        there = earlier.get(nearest, {})
        pairs |= {
            f"{layer}.{name}": f"{nearest}.{name}" for name, header in tensors.items()
            if name in there and there[name].shape == header.shape and header.count
        }
    return pairs


def _corners(layer: str, tensors: dict[str, TensorHeader], read: _Files) -> dict[str, torch.Tensor]:
    return {
        name: read(f"{layer}.{name}").get_slice(f"{layer}.{name}")[:CORNER, :CORNER].float()
        for name, header in sorted(tensors.items()) if len(header.shape) == 2 and header.count
    }


def _apart(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Distance of two layers' corners; what is not a number is as far as can be."""
    total = sum(_norm(mine[name] - theirs[name]) ** 2 for name in mine)
    return math.inf if math.isnan(total) else total


@contextmanager
def _reading(headers: dict[str, TensorHeader]) -> Iterator[_Files]:
    """The open file of each tensor."""
    with ExitStack() as closing:
        files = {
            file: closing.enter_context(safe_open(file, framework="pt"))
            for file in sorted({header.file for header in headers.values()})
        }
        yield lambda name: files[headers[name].file]


def spectral_norm(matrix: torch.Tensor, name: str) -> float:
    """The largest singular value by power iteration from a start that only the tensor's name decides."""
    generator = torch.Generator().manual_seed(seed_from("spectral", name))
    vector = torch.randn(matrix.shape[1], generator=generator).to(matrix)
    for _ in range(ROUNDS):
        image = matrix.T @ (matrix @ vector)
        length = torch.linalg.vector_norm(image)
        if not float(length):
            return 0.0
        vector = image / length
    return float(torch.linalg.vector_norm(matrix @ vector))


def behaviour_drift(before: Scored, after: Scored, items: Sequence[Item]) -> JsonObject:
    """KL(after || before) per token on the probe's texts, shift of entropy, shift of greedy answer length."""
    drift: JsonObject = {}
    if _vocabulary(before) == _vocabulary(after):
        divergences, entropies = _per_token(before, after, items)
        drift = {
            "kl_mean": float(divergences.mean()), "kl_p99": float(torch.quantile(divergences, 0.99)),
            "entropy_shift": abs(float(entropies[1].mean() - entropies[0].mean())),
        }
    lengths = [
        sum(len(m.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in texts)
        for m in (before, after)
        for texts in [generate_texts(m.model, m.tokenizer, items[:: -(-len(items) // GENERATED)], PROBE_ROWS)]
    ]
    return drift | {"length_shift": abs(lengths[1] / lengths[0] - 1.0)}


@torch.inference_mode()
def _per_token(before: Scored, after: Scored, items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
    """KL [tokens] and the two entropies [2, tokens] at every position that predicts a token of an item."""
    encoded = encode_items(before.tokenizer, [(item.prompt, item.answer) for item in items])
    texts = sorted((prompt + answer for prompt, answer in encoded), key=len)
    divergences, entropies = [], []
    for start in range(0, len(texts), PROBE_ROWS):
        part = texts[start : start + PROBE_ROWS]
        longest = max(map(len, part))
        ids = torch.full((len(part), longest), pad_id(before.tokenizer))
        for row, text in enumerate(part):
            ids[row, : len(text)] = torch.tensor(text)
        real = torch.arange(longest - 1)[None, :] < torch.tensor([len(text) - 1 for text in part])[:, None]
        old, new = (_log_p(scored, ids)[real.to(scored.model.device)] for scored in (before, after))
        divergences.append((new.exp() * (new - old)).sum(-1).cpu())
        entropies.append(torch.stack([-(log_p.exp() * log_p).sum(-1).cpu() for log_p in (old, new)]))
    return torch.cat(divergences), torch.cat(entropies, dim=1)


@torch.inference_mode()
def calibration(scored: Scored, items: Sequence[Item]) -> JsonObject:
    """Expected calibration error over the tokens of the references, each predicted from the right ones before it.

    A prediction is the most probable token and its confidence that probability; ten bins of confidence, each with the
    gap between its mean confidence and its share of right predictions, weighted by size (Guo et al. 2017, eq. 3).
    """
    encoded = encode_items(scored.tokenizer, [(item.prompt, item.answer) for item in items])
    encoded.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    confidences, rights = [], []
    for start in range(0, len(encoded), PROBE_ROWS):
        part = encoded[start : start + PROBE_ROWS]
        longest = max(len(prompt) + len(answer) for prompt, answer in part)
        ids = torch.full((len(part), longest), pad_id(scored.tokenizer))
        asked = torch.zeros((len(part), longest - 1), dtype=torch.bool)
        for row, (prompt, answer) in enumerate(part):
            ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
            asked[row, len(prompt) - 1 : len(prompt) + len(answer) - 1] = True
        best = _log_p(scored, ids).cpu()[asked].max(dim=-1)
        confidences.append(best.values.exp())
        rights.append(best.indices == ids[:, 1:][asked])
    confidence, right = torch.cat(confidences), torch.cat(rights).float()
    bins = (confidence * BINS).long().clamp(0, BINS - 1)
    gaps = [
        abs(float((confidence[inside] - right[inside]).mean())) * int(inside.sum())
        for inside in (bins == number for number in range(BINS)) if inside.any()
    ]
    return {"error": _sayable(sum(gaps) / len(right)), "tokens": len(right)}


def _log_p(scored: Scored, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = scored.model(input_ids=ids.to(scored.model.device), use_cache=False).logits[:, :-1]
    return logits.float().log_softmax(-1)


def _vocabulary(scored: Scored) -> Any:
    return scored.model.get_output_embeddings().weight.shape[0], scored.tokenizer.get_vocab()


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _larger(left: float, right: float) -> float:
    """The maximum, where not-a-number is the largest of all."""
    return right if math.isnan(right) else max(left, right)


def _sayable(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
