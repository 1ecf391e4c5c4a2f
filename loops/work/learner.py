"""A model while it learns: its weights or adapter, its optimiser, and how both go to disk and come back.

Shared by the jobs that train. Invariant: a checkpoint is self-sufficient, so carrying one on needs nothing
of the model it is paired with but the configuration and the tokenizer. No loss and no data live here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from loops.pipeline.recipe import Adapter, AdapterKind, Recipe
from loops.work import checkpoint
from loops.work.checkpoint import Checkpoint
from safety.yardstick.scoring import auto_class
from state.records import JsonObject

WEIGHT_DECAY = 0.0
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")


@dataclass(slots=True)
class Learner:
    """`model` is the adapter's model when there is an adapter. `source` is the folder it was loaded
    from, `dtype` what its weights have on disk.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.AdamW
    source: Path
    device: str
    dtype: torch.dtype

    def learning(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The parameters that are trained, in the optimiser's order."""
        return ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad)

    def groups(self, *, whole: bool) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps: the learning weights and the moments, and when `whole` the frozen weights too."""
        weights = {name: p.data for name, p in self.model.named_parameters() if whole or p.requires_grad}
        moments = {
            f"{name}@{key}": torch.as_tensor(value)
            for name, parameter in self.learning()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {"weights": weights, "optimizer": moments}

    def restore(self, found: Checkpoint) -> None:
        """Take weights and moments back, bit for bit. ValueError when they belong to another kind of model."""
        weights = found.tensors("weights")
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                stored = weights.pop(name, None)
                if stored is not None and stored.shape == parameter.shape:
                    parameter.copy_(stored)
                elif stored is not None or parameter.requires_grad:
                    raise ValueError(f"checkpoint {found.folder.name} does not fit the model: {name}")
        if weights:
            raise ValueError(f"checkpoint {found.folder.name} does not fit the model: {min(weights)}")
        moments: dict[str, dict[str, Tensor]] = {}
        for key, tensor in found.tensors("optimizer").items():
            name, _, moment = key.rpartition("@")
            moments.setdefault(name, {})[moment] = tensor
        order = [name for name, _ in self.learning()]
        state = {place: moments[name] for place, name in enumerate(order) if name in moments}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def save(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder, the adapter merged in. The learner is spent after that.

        Weights keep the dtype they came in; every other file is the source's own, byte for byte.
        """
        model = self.model.merge_and_unload() if isinstance(self.model, PeftModel) else self.model
        written = folder.with_name(folder.name + ".writing")
        for leftover in (written, folder):
            if leftover.exists():
                shutil.rmtree(leftover)
        folder.mkdir(parents=True)
        model.to(self.dtype).save_pretrained(written, safe_serialization=True)
        for path in (path for pattern in WEIGHT_FILES for path in written.glob(pattern)):
            path.rename(folder / path.name)
        shutil.rmtree(written)
        copied = [
            path for path in self.source.iterdir()
            if path.is_file() and not any(path.match(pattern) for pattern in WEIGHT_FILES)
        ]
        for path in copied:
            shutil.copyfile(path, folder / path.name)


def load_learner(folder: Path, recipe: Recipe, seed: int, device: str) -> Learner:
    """Load a model for training: float32 on the CPU; on cuda float32 weights under bfloat16 arithmetic, and frozen
    bfloat16 weights below a float32 adapter. `seed` fixes the adapter's first values.
    """
    model, frozen = load_model(folder, recipe, device), recipe.adapter.kind is not AdapterKind.NONE
    senses = _beside_language(model)
    for parameter in senses.values():
        parameter.requires_grad_(False)
    if frozen:
        torch.manual_seed(seed)
        model = get_peft_model(model, adapter_config(recipe.adapter, senses))
    model.to(device)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=recipe.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    return Learner(model, load_tokenizer(folder), optimizer, folder, device, _stored_dtype(folder))


def load_model(folder: Path, recipe: Recipe, device: str) -> Any:
    """The bare model in the dtype that the recipe's training has it in, on the CPU."""
    logging.disable_progress_bar()
    frozen = recipe.adapter.kind is not AdapterKind.NONE
    return auto_class(folder).from_pretrained(
        folder, dtype=torch.bfloat16 if frozen and device == "cuda" else torch.float32,
        use_safetensors=True, trust_remote_code=False, local_files_only=True,
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model, with something to pad with. ValueError where it has no end token."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{folder}: the tokenizer has no end token, so no answer could ever end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _beside_language(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters of a model that are no part of its language model: what it sees with, which is never trained."""
    if model.config.get_text_config() is model.config:
        return {}
    own = {id(parameter) for part in (model.get_decoder(), model.get_output_embeddings()) for parameter in
           part.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in own}


def adapter_config(adapter: Adapter, untouched: Iterable[str] = ()) -> LoraConfig:
    """LoRA (2106.09685), DoRA (2402.09353) or rank-stabilised LoRA (2312.03732) on every linear layer but the head and
    those whose parameters are named.
    """
    modules = sorted({name.rpartition(".")[0] for name in untouched})
    return LoraConfig(
        exclude_modules=modules or None,
        r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM",
        use_dora=adapter.kind is AdapterKind.DORA, use_rslora=adapter.kind is AdapterKind.RSLORA,
    )


def schedule(recipe: Recipe, first_step: int, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """The recipe's learning rate by the whole run's step, for a trainer that counts from `first_step`."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: recipe.rate(first_step + step) / recipe.learning_rate
    )


def standing(recipe: Recipe, step: int) -> JsonObject:
    """What a checkpoint says about the run it is part of."""
    adapter = recipe.to_json()["adapter"] if recipe.adapter.kind is not AdapterKind.NONE else {"kind": "none"}
    return {"stage": str(recipe.stage), "adapter": adapter, "step": step}


def take_up(learner: Learner, folder: Path | None, recipe: Recipe, from_step: int) -> JsonObject:
    """Restore the input checkpoint and return its state, {} where none was given.

    ValueError when it is torn, belongs to another stage or adapter, or does not stand at `from_step`.
    """
    if folder is None:
        if from_step:
            raise ValueError(f"steps from {from_step} on need a checkpoint")
        return {}
    found = checkpoint.read(folder)
    if found is None:
        raise ValueError("the input checkpoint is torn: its files do not match its manifest")
    for key, wanted in standing(recipe, from_step).items():
        if found.state.get(key) != wanted:
            raise ValueError(f"the checkpoint's {key} is {found.state.get(key)}, asked for is {wanted}")
    learner.restore(found)
    return found.state


def _stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of the weights on disk, by the first floating tensor of the first file."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():                                                        # noqa: SIM118
                dtype: torch.dtype = file.get_slice(name)[:1].dtype
                if dtype.is_floating_point:
                    return dtype
    return torch.float32
