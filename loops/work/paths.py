"""Builds what a path through layers describes (Akiba et al., arXiv 2403.13187): an ordinary model of another depth.

No code comes with it. A scale on the residual stream does not fold into the norm behind it, which is scale-free; but it
folds into what the layers add to the stream, because every read goes through such a norm. Where the path wants
x_(k+1) = w_k x_k + f_k(w_k x_k), the model holds y_k = x_k / (w_0 .. w_(k-1)), embeddings as they are, and adds
f_k / (w_0 .. w_k): each layer's output projections are divided by the product of the scales up to it. What norms add to
the mean square is then eps times that product squared. Invariants: a layer before the first scale that is not 1 is its
parent's, bit for bit; occurrences of a layer are separate tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loops.architecture.genome import models_of, template_of
from safety.headers import read_json
from safety.layers import laid, place_of, writes
from state.records import JsonObject

Tensors = Mapping[str, Tensor]


def path_config(change: JsonObject, folders: Mapping[str, Path]) -> JsonObject:
    """The config of the path. `folders` maps every digest of its parents to the folder that has its config.

    Raises HeaderError, or ValueError where no path can be laid through these models.
    """
    configs = [read_json(folders[digest] / "config.json") for digest in change["parents"]]
    return laid(configs, [(model, layer) for model, layer in change["layers"]])


def write_config(config: JsonObject, file: Path) -> None:
    """Write a path's config.json."""
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor of a path comes from: model, tensor, and what it is multiplied by; `again` where an earlier tensor
    of the path is the same.
    """

    model: str
    tensor: str
    factor: float = 1.0
    again: bool = False

    def taken(self, models: Mapping[str, Tensors], dtype: torch.dtype) -> Tensor:
        """The tensor in that dtype; a shared one is copied, so that what is written is not one for two."""
        held = models[self.model][self.tensor]
        if self.factor != 1.0:
            return (held.float() * self.factor).to(dtype)
        return held.to(dtype, copy=self.again)


def path_sources(change: JsonObject, models: Mapping[str, Collection[str]]) -> dict[str, Source]:
    """Where each tensor of the path comes from, in name order, by the names of the models' tensors.

    ValueError for a layer that no model has, or one that cannot be scaled.
    """
    stacks = {digest: _stack(digest, models[digest]) for digest in models_of(change)}
    template = template_of(change)
    outer, _ = stacks[template]
    sources = {name: Source(template, name) for name in models[template] if place_of(name) is None}
    met: set[tuple[int, int]] = set()
    factor = 1.0
    for place, ((model, layer), scale) in enumerate(zip(change["layers"], change["scales"], strict=True)):
        digest = change["parents"][model]
        _, layers = stacks[digest]
        factor /= scale
        if layer not in layers:
            raise ValueError(f"model {digest[:12]} has no layer {layer}")
        if factor != 1.0 and not any(writes(name) for name in layers[layer]):
            raise ValueError(f"layer {layer} of model {digest[:12]} cannot be scaled: where it writes is not known")
        for name, tensor in layers[layer].items():
            by = factor if writes(name) else 1.0
            sources[f"{outer}.{place}.{name}"] = Source(digest, tensor, by, (model, layer) in met)
        met.add((model, layer))
    return {name: sources[name] for name in sorted(sources, key=_natural)}


def _stack(digest: str, tensors: Collection[str]) -> tuple[str, dict[int, dict[str, str]]]:
    """What a model's layers are called, and of each layer {name within it: tensor}."""
    layers: dict[int, dict[str, str]] = {}
    outer = set()
    for tensor in tensors:
        found = place_of(tensor)
        if found:
            outer.add(found[0])
            layers.setdefault(found[1], {})[found[2]] = tensor
    if len(outer) != 1:
        raise ValueError(f"model {digest[:12]} has {len(outer)} stacks of layers, a path needs one")
    return outer.pop(), layers


def _natural(name: str) -> list[str | int]:
    """Sort key that puts layer 10 after layer 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
