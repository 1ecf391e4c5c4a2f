"""Builds the model that a genome describes, in memory (`composed`) and on disk (the job "build").

Invariant: screening and building go through `composed`, so the model that is written is the model that was scored,
bit for bit. Tensors are read and written as safetensors; config and tokenizer come from the template, the change's
base or else its first parent.
"""

from __future__ import annotations

import errno
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
from loops.work import merge
from loops.work.part import shared
from safety.headers import weight_files
from safety.licences import CARD, Obligations, is_inherited, obligations_of
from safety.preflight import mismatches, scope_in_words
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject

Tensors = Mapping[str, Tensor]
WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl")
LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.(.*)$")


def build(spec: JobSpec, desk: Desk) -> Produced:
    """Job "build". Inputs "model:<digest>"; params {"change"}; output "model", a Hugging Face folder."""
    change = spec.params["change"]
    folders = {digest: desk.inputs[f"model:{digest}"] for digest in models_of(change)}
    part = _part_in_words(template_of(change), folders)
    _ask_for_room(folders[template_of(change)], desk.folder)
    desk.progress(0.0, part)
    models = {digest: read_tensors(folder, desk.device) for digest, folder in folders.items()}
    made = {name: tensor.cpu().contiguous() for name, tensor in composed(change, models)}
    folder = desk.folder / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source in sorted(folders[template_of(change)].iterdir()):
        if source.is_file() and is_inherited(source.name) and not source.name.endswith(WEIGHT_FILES):
            shutil.copyfile(source, folder / source.name)
    save_torch_state_dict(made, folder, metadata={"format": "pt"})
    owed = obligations_of(folders.values())
    owed.write_notices(folder)
    (folder / CARD).write_text(card(change, owed, part), encoding="utf-8")
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
    so the order in which a change names them changes no bit. Where a parent is a text model and the template more than
    that, only the language part is made, as it would be of text models alone; the rest is the template's, bit for bit.
    ValueError for tensors that do not match.
    """
    template = models[template_of(change)]
    both = shared(template_of(change), {digest: models[digest] for digest in models_of(change)})
    names = sorted(both.names.values(), key=_natural)
    rule = _merged(change, both.views, names) if change["kind"] == "merge" else _crossed(change, both.views, names)
    for name in sorted(template, key=_natural):
        made = name in both.names and template[name].is_floating_point()
        yield name, (rule(both.names[name]) if made else template[name]).to(template[name].dtype)


def place(change: JsonObject, models: Mapping[str, Tensors], shell: Mapping[str, Tensor]) -> None:
    """Overwrite the tensors of a loaded model with the candidate's, in place. `shell` is its state dict."""
    with torch.no_grad():
        for name, tensor in composed(change, models):
            shell[name].copy_(tensor)


def card(change: JsonObject, owed: Obligations, part: str = "") -> str:
    """The model card: the licences of everything that went in, in front matter and with what they ask, how the model
    was made, and what of it was kept where not all was.
    """
    made = change.get("operator", change["kind"])
    parents = "\n".join(f"- {digest}" for digest in change["parents"])
    about = f"{made} of\n\n{parents}\n" + (f"\n{part}\n" if part else "")
    return f"{owed.front_matter()}\n# Made by kaizend\n\n{about}\n{owed.in_words()}"


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


def _part_in_words(template: str, folders: Mapping[str, Path]) -> str:
    """What of the template is made and what is kept, "" where all of it is made; by headers and configurations alone.
    ValueError for a folder that cannot be merged into the template's.
    """
    for digest, folder in folders.items():
        for problem in mismatches(folders[template], folder):
            raise ValueError(f"model {digest[:12]} cannot be merged: {problem.text}")
    words = (scope_in_words(folders[template], folder) for folder in folders.values())
    return next(filter(None, words), "")


def _ask_for_room(template: Path, scratch: Path) -> None:
    """Raise OSError (no space left) where a model as large as the template does not fit on the disk of `scratch`."""
    needed, free = sum(file.stat().st_size for file in weight_files(template)), shutil.disk_usage(scratch).free
    if free < needed:
        reason = f"{needed / 2**30:.1f} GiB are needed for a model, {free / 2**30:.1f} GiB are free"
        raise OSError(errno.ENOSPC, reason, str(scratch))


def _natural(name: str) -> list[Any]:
    """Sort key that puts layer 10 after layer 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
