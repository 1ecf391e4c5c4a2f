"""Builds the model that a genome describes, in memory (`composed`) and on disk (the job "build").

Invariant: screening and building go through `composed`, so the model that is written is the model that was scored,
bit for bit. Tensors are read and written as safetensors; config and tokenizer come from the template, the change's
base or else its first parent. Paths through layers are built in `loops.work.paths`.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from torch import Tensor

from loops.architecture.genome import MODULES, Operator, models_of, template_of
from loops.architecture.paths import PATH
from loops.work import merge, paths
from safety.preflight import licences_of
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject

Tensors = Mapping[str, Tensor]
WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl")
LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.(.*)$")


def build(spec: JobSpec, desk: Desk) -> Produced:
    """Job "build". Inputs "model:<digest>"; params {"change"}; output "model", a Hugging Face folder."""
    change = spec.params["change"]
    models = {digest: read_tensors(desk.inputs[f"model:{digest}"], desk.device) for digest in models_of(change)}
    made = {name: tensor.cpu().contiguous() for name, tensor in composed(change, models)}
    folder = desk.folder / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source in sorted(desk.inputs[f"model:{template_of(change)}"].iterdir()):
        if source.is_file() and source.name != "README.md" and not source.name.endswith(WEIGHT_FILES):
            shutil.copyfile(source, folder / source.name)
    if change["kind"] == PATH:
        paths.write_config(change, {digest: desk.inputs[f"model:{digest}"] for digest in models_of(change)},
                           folder / "config.json")
    save_torch_state_dict(made, folder, metadata={"format": "pt"})
    (folder / "README.md").write_text(card(change, [desk.inputs[f"model:{digest}"] for digest in models_of(change)]),
                                      encoding="utf-8")
    return Produced({"parameters": sum(tensor.numel() for tensor in made.values())}, {"model": folder})


def read_tensors(folder: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Every tensor of a model folder, in its stored dtype. ValueError where there are no safetensors."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no safetensors")
    tensors: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt", device=device) as opened:
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118  not a dict
    return tensors


def composed(change: JsonObject, models: Mapping[str, Tensors]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the model that `change` describes, in name order, each in the template's dtype.

    `models` maps every digest of `models_of(change)` to its tensors. Parents are summed in the order of their digests,
    so the order in which a change names them changes no bit. ValueError for tensors that do not match.
    """
    if change["kind"] == PATH:
        yield from paths.path_tensors(change, models)
        return
    template = models[template_of(change)]
    names = sorted(template, key=_natural)
    for digest in models_of(change):
        _check_alike(template, models[digest], digest)
    rule = _merged(change, models, names) if change["kind"] == "merge" else _crossed(change, models, names)
    for name in names:
        yield name, (rule(name) if template[name].is_floating_point() else template[name]).to(template[name].dtype)


def place(change: JsonObject, models: Mapping[str, Tensors], shell: Mapping[str, Tensor]) -> None:
    """Overwrite the tensors of a loaded model with the candidate's, in place. `shell` is its state dict."""
    with torch.no_grad():
        for name, tensor in composed(change, models):
            shell[name].copy_(tensor)


def card(change: JsonObject, folders: Sequence[Path]) -> str:
    """The model card: the union of the parents' licences in front matter, and the genome in words."""
    held = sorted({licence for folder in folders for licence in licences_of(folder)})
    front = f"license: {held[0]}" if len(held) == 1 else "license:\n" + "\n".join(f"- {name}" for name in held)
    made = change.get("operator", change["kind"])
    parents = "\n".join(f"- {digest}" for digest in change["parents"])
    return f"---\n{front}\n---\n\n# Made by kaizend\n\n{made} of\n\n{parents}\n"


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
    """The rule that gives one merged tensor by name, in float32."""
    operator, groups, layers = Operator(change["operator"]), change["groups"], layer_count(names)
    if groups > layers:
        raise ValueError(f"{groups} groups of layers were asked for, the model has {layers} layers")
    parents: list[str] = change["parents"]
    order = sorted(range(len(parents)), key=lambda place: parents[place])
    prunes = _prunes(operator, change, [parents[place] for place in order], order)

    def merged(name: str) -> Tensor:
        group, module = cell_of(name, groups, layers)
        if operator is Operator.SLERP:
            return merge.slerp(models[parents[0]][name], models[parents[1]][name], change["t"][group][module])
        tensors = [models[parents[place]][name] for place in order]
        weights = [change["weights"][place][group][module] for place in order]
        if operator is Operator.LINEAR:
            return merge.linear(tensors, weights)
        base = models[change["base"]][name]
        if operator is Operator.TASK_ARITHMETIC:
            return merge.task_arithmetic(base, tensors, weights)
        join = merge.sparse_sum if operator is Operator.DARE_LINEAR else merge.sign_elected
        return join(base, tensors, weights, prunes(name))

    return merged


def _prunes(
    operator: Operator, change: JsonObject, parents: Sequence[str], order: Sequence[int]
) -> Callable[[str], merge.Prune]:
    """How the deltas of one tensor are made sparse: by magnitude (TIES) or by a seeded mask (DARE)."""
    densities: list[float] = [change["density"][place] for place in order] if "density" in change else []
    if operator is Operator.TIES:
        return lambda name: lambda delta, place: merge.top_magnitudes(delta, densities[place])
    return lambda name: lambda delta, place: merge.dropped(
        delta, densities[place], merge.drop_seed(change["seed"], name, parents[place])
    )


def _crossed(change: JsonObject, models: Mapping[str, Tensors], names: Sequence[str]) -> Callable[[str], Tensor]:
    """M2N2's child (arXiv 2508.16204): SLERP_w of A and B below the split point, SLERP_(1-w) above it.

    The split is a fraction of all parameters in name order; the tensor it falls in is cut there. One parent alone
    stands for itself.
    """
    first, second = models[change["parents"][0]], models[change["parents"][-1]]
    mix: float = change["mix"]
    starts, total = {}, 0
    for name in names:
        starts[name] = total
        total += first[name].numel()
    point = math.floor(change["split"] * total)

    def crossed(name: str) -> Tensor:
        a, b, below = first[name], second[name], point - starts[name]
        if len(change["parents"]) == 1:
            return a.float()
        if below <= 0 or below >= a.numel():
            return merge.slerp(a, b, mix if below > 0 else 1.0 - mix)
        lower = merge.slerp(a.flatten()[:below], b.flatten()[:below], mix)
        upper = merge.slerp(a.flatten()[below:], b.flatten()[below:], 1.0 - mix)
        return torch.cat([lower, upper]).view(a.shape)

    return crossed


def _check_alike(template: Tensors, other: Tensors, digest: str) -> None:
    if template is other:
        return
    if template.keys() != other.keys():
        odd = sorted(template.keys() ^ other.keys())
        raise ValueError(f"model {digest[:12]} differs from the template in {len(odd)} tensor names, first {odd[0]}")
    for name, tensor in template.items():
        if tensor.shape != other[name].shape:
            raise ValueError(f"tensor {name} of model {digest[:12]} is {list(other[name].shape)}, "
                             f"the template's is {list(tensor.shape)}")


def _natural(name: str) -> list[Any]:
    """Sort key that puts layer 10 after layer 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
