"""Builds the model that a genome describes, in memory (`composed`) and on disk (the job "build").

Invariant: screening and building go through `planned`, so the model that is written is the model that was scored, bit
for bit. On disk it is made tensor by tensor, from mapped files (`loops.work.weights`) to files (`loops.work.shards`),
so that it may be larger than memory. Config and tokenizer come from the template, the change's base or else its first
parent. What a path through layers is made of is the business of `loops.work.paths`.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loops.architecture.genome import MODULES, genes_at, models_of, template_of
from loops.architecture.paths import PATH, in_words
from loops.work import merge, paths, shards
from loops.work.joining import Inputs
from loops.work.part import shared
from loops.work.threads import tensor_threads
from loops.work.weights import Tensors, opened, opened_all, outline_of
from safety.adapters import is_adapter
from safety.licences import CARD, Obligations, is_inherited, obligations_of
from safety.operators import OPERATORS, Operator
from safety.preflight import mismatches, scope_in_words
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject

WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl")
LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.(.*)$")


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A model that can be made tensor by tensor, in any order and by several threads.

    `outline` has the names in natural order, with shapes and dtypes; `make` gives one tensor by name.
    """

    outline: Tensors
    make: Callable[[str], Tensor]


def build(spec: JobSpec, desk: Desk) -> Produced:
    """Job "build". Inputs "model:<digest>", models, or adapters over the change's base; params {"change"} and, where
    files of weights are not to be as large as libraries make them, {"shard_bytes"}; output "model", a folder as Hugging
    Face has them.

    The folder has its name only when all of it is there. Killed and run again, the job keeps the files of weights that
    were finished.
    """
    change = spec.params["change"]
    folders = {digest: desk.inputs[f"model:{digest}"] for digest in models_of(change)}
    homes = homes_of(change, folders)
    template = homes[template_of(change)]
    config = paths.path_config(change, homes) if change["kind"] == PATH else None
    part = "" if config else _part_in_words(template, folders)
    desk.progress(0.0, part)
    blueprint = planned(change, opened_all(folders, change.get("base"), desk.device))
    folder, writing = desk.folder / "model", desk.folder / "model.writing"
    if folder.exists() and not writing.exists():
        folder.rename(writing)                          # complete, but the job was killed before it could say so
    writing.mkdir(parents=True, exist_ok=True)
    largest = max(tensor.nbytes for tensor in blueprint.outline.values())
    over = 4 * sum(home != folders[digest] for digest, home in homes.items())       # an adapter's tensor is in float32
    numbers = max(tensor.numel() for tensor in blueprint.outline.values())
    shards.write(
        blueprint.outline, lambda name: blueprint.make(name).cpu(), writing, desk.folder / "steps",
        shard_bytes=spec.params.get("shard_bytes", shards.SHARD_BYTES),
        memory_bytes=(len(folders) + 2) * largest + over * numbers + shards.SLACK_BYTES,
        making_bytes=shards.MAKING_BYTES + over, threads=desk.threads, progress=desk.progress,
    )
    for source in sorted(template.iterdir()):
        if source.is_file() and is_inherited(source.name) and not source.name.endswith(WEIGHT_FILES):
            shutil.copyfile(source, writing / source.name)
    if config:
        paths.write_config(config, writing / "config.json")
    owed = obligations_of(folders.values())
    owed.write_notices(writing)
    (writing / CARD).write_text(card(change, owed, part), encoding="utf-8")
    writing.rename(folder)
    return Produced({"parameters": sum(tensor.numel() for tensor in blueprint.outline.values())}, {"model": folder})


def homes_of(change: JsonObject, folders: Mapping[str, Path]) -> dict[str, Path]:
    """The folder that has config and tokenizer of each model by digest: its own, or for an adapter the base's.
    ValueError for an adapter in a change that names no base.
    """
    homes = {}
    for digest, folder in folders.items():
        if is_adapter(folder) and "base" not in change:
            raise ValueError(f"model {digest[:12]} is an adapter, and the change names no base that it is over")
        homes[digest] = folders[change["base"]] if is_adapter(folder) else folder
    return homes


def read_tensors(folder: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Every tensor of a model folder, in its stored dtype. ValueError where there are no safetensors."""
    return dict(opened(folder, device=device))


def planned(change: JsonObject, models: Mapping[str, Tensors]) -> Blueprint:
    """The model that `change` describes, each tensor in the template's dtype.

    `models` maps every digest of `models_of(change)` to its tensors. Parents are summed in the order of their digests,
    so the order in which a change names them changes no bit. Where a parent is a text model and the template more than
    that, only the language part is made, as it would be of text models alone; the rest is the template's, bit for bit.
    ValueError for tensors that do not match.
    """
    template, outlines = models[template_of(change)], {d: outline_of(tensors) for d, tensors in models.items()}
    if change["kind"] == PATH:
        sources = paths.path_sources(change, outlines)
        laid = {name: outlines[source.model][source.tensor] for name, source in sources.items()}
        return Blueprint(laid, lambda name: sources[name].taken(models, laid[name].dtype))
    known = outlines[template_of(change)]
    outline = {name: known[name] for name in sorted(known, key=_natural)}
    named = models_of(change)
    both = shared(template_of(change), {d: models[d] for d in named}, {d: outlines[d] for d in named})
    names = sorted(both.names.values(), key=_natural)
    if change["kind"] == "merge":
        rule = _merged(change, both.views, names)
    else:
        common = {common: known[name] for name, common in both.names.items()}
        rule = _crossed(change, both.views, {name: common[name] for name in names})

    def make(name: str) -> Tensor:
        dtype = outline[name].dtype
        made = name in both.names and dtype.is_floating_point
        return rule(both.names[name]).to(dtype) if made else template[name]

    return Blueprint(outline, make)


def composed(change: JsonObject, models: Mapping[str, Tensors]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the model that `change` describes, in name order. See `planned`."""
    blueprint = planned(change, models)
    return ((name, blueprint.make(name)) for name in blueprint.outline)


def place(change: JsonObject, models: Mapping[str, Tensors], shell: Mapping[str, Tensor]) -> None:
    """Overwrite the tensors of a loaded model with the candidate's, in place. `shell` is its state dict.

    As many threads as torch has now make them. Where two names share their memory the last one counts.
    """
    blueprint = planned(change, models)
    last = {shell[name].data_ptr(): name for name in blueprint.outline}

    @torch.no_grad()
    def overwrite(name: str) -> None:
        shell[name].copy_(blueprint.make(name))

    with tensor_threads(torch.get_num_threads()) as pool:
        for _ in pool.map(overwrite, last.values()):
            pass


def card(change: JsonObject, owed: Obligations, part: str = "") -> str:
    """The model card: the licences of everything that went in, in front matter and with what they ask, how the model
    was made, and what of it was kept where not all was.
    """
    made = change.get("operator", change["kind"])
    parents = "\n".join(f"- {digest}" for digest in change["parents"])
    through = "\n".join(f"{place}. {line}" for place, line in enumerate(_through(change)))
    about = f"{made} of\n\n{parents}\n" + (f"\nthrough\n\n{through}\n" if through else "")
    about += f"\n{part}\n" if part else ""
    return f"{owed.front_matter()}\n# Made by kaizend\n\n{about}\n{owed.in_words()}"


def _through(change: JsonObject) -> list[str]:
    return in_words(change, lambda digest: digest[:12]) if change["kind"] == PATH else []


def cell_of(name: str, groups: int, layers: int) -> tuple[int, int]:
    """Block of layers and index in `MODULES` of a tensor; embeddings join the first block, what ends a model the last.

    A norm counts as "other", whatever it stands after.
    """
    found = LAYER.search(f".{name}")
    if not found:
        return (0 if "embed" in name or ".wte." in name else groups - 1), MODULES.index("other")
    part = found.group(2).split(".")[0].lower()
    if "norm" in part or part.startswith("ln"):
        module = "other"
    elif "attn" in part or "attention" in part:
        module = "attention"
    else:
        module = "mlp" if any(word in part for word in ("mlp", "feed_forward", "ffn")) else "other"
    return int(found.group(1)) * groups // layers, MODULES.index(module)


def layer_count(names: Sequence[str]) -> int:
    """Number of layers, read off the tensor names; at least 1."""
    return 1 + max((int(found.group(1)) for name in names if (found := LAYER.search(f".{name}"))), default=0)


def _merged(change: JsonObject, models: Mapping[str, Tensors], names: Sequence[str]) -> Callable[[str], Tensor]:
    """The rule that gives one merged tensor by name, in the template's dtype."""
    operator, groups, layers = Operator(change["operator"]), change["groups"], layer_count(names)
    if groups > layers:
        raise ValueError(f"{groups} groups of layers were asked for, the model has {layers} layers")
    parents: list[str] = change["parents"]
    traits, order = OPERATORS[operator], list(range(len(parents)))
    if traits.symmetric:
        order.sort(key=lambda place: parents[place])

    def merged(name: str) -> Tensor:
        tensors = [models[parents[place]][name] for place in order]
        inputs = Inputs(
            models[change["base"]][name] if traits.over_base else tensors[0], tensors,
            genes_at(change, *cell_of(name, groups, layers), order),
            [merge.drop_seed(change["seed"], name, parents[place]) for place in order],
        )
        return merge.merged(operator, inputs, models[template_of(change)][name].dtype)

    return merged


def _crossed(change: JsonObject, models: Mapping[str, Tensors], outline: Tensors) -> Callable[[str], Tensor]:
    """M2N2's child (arXiv 2508.16204): SLERP_w of A and B below the split point, SLERP_(1-w) above it.

    The split is a fraction of all parameters in name order; the tensor it falls in is cut there. With an
    "attention_split" the tensors of attention have that fraction of theirs, and "split" is of the rest. One parent
    alone stands for itself.
    """
    first, second = models[change["parents"][0]], models[change["parents"][-1]]
    mix: float = change["mix"]
    apart = "attention_split" in change
    left = {}                                                   # parameters from a tensor's start to its split point
    for own in (True, False):
        part = [name for name in outline if (apart and _is_attention(name)) == own]
        sizes = [outline[name].numel() for name in part]
        point = math.floor(change["attention_split" if own else "split"] * sum(sizes)) if part else 0
        for name, size in zip(part, sizes, strict=True):
            left[name] = point
            point -= size

    def crossed(name: str) -> Tensor:
        a, b, below = first[name], second[name], left[name]
        if len(change["parents"]) == 1:
            return a.float()
        if below <= 0 or below >= a.numel():
            return merge.slerp(a, b, mix if below > 0 else 1.0 - mix)
        lower = merge.slerp(a.flatten()[:below], b.flatten()[:below], mix)
        upper = merge.slerp(a.flatten()[below:], b.flatten()[below:], 1.0 - mix)
        return torch.cat([lower, upper]).view(a.shape)

    return crossed


def _is_attention(name: str) -> bool:
    return MODULES[cell_of(name, 1, 1)[1]] == "attention"


def _part_in_words(template: Path, folders: Mapping[str, Path]) -> str:
    """What of the template is made and what is kept, "" where all of it is made; by headers and configurations alone.
    ValueError for a folder that cannot be merged into the template's.
    """
    for digest, folder in folders.items():
        for problem in mismatches(template, folder):
            raise ValueError(f"model {digest[:12]} cannot be merged: {problem.text}")
    words = (scope_in_words(template, folder) for folder in folders.values())
    return next(filter(None, words), "")


def _natural(name: str) -> list[Any]:
    """Sort key that puts layer 10 after layer 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
