"""Real adapters for the tests, made and merged by PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import EOS
from transformers import AutoModelForCausalLM, AutoTokenizer

CARD = "---\nlicense: mit\n---\n"


def adapter(base: Path, folder: Path, seed: int = 0, **more: Any) -> Path:
    """A random adapter of rank 4 over the model in `base`, with a card, in a new folder; returns the folder."""
    model = AutoModelForCausalLM.from_pretrained(base)
    wrapped = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **more}))
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_magnitude" in name:
            parameter.data.mul_(1.0 + 0.1 * torch.rand(parameter.shape, generator=draw))
        elif "lora_" in name or "modules_to_save" in name:
            parameter.data.normal_(0.0, 0.1, generator=draw)
    wrapped.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


def whole(base: Path, folder: Path, into: Path) -> Path:
    """The model that PEFT makes of an adapter, in float32, as a folder with the base's tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(into)
    for file in [*base.glob("token*"), *base.glob("special*")]:
        shutil.copy(file, into)
    return into


def taught(base: Path, pairs: list[tuple[str, str]], folder: Path, steps: int = 60, rate: float = 5e-3) -> Path:
    """An adapter over `base` that learnt to answer these prompts."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules="all-linear"))
    rows = [(tokenizer(prompt)["input_ids"], tokenizer(f"{answer} {EOS}")["input_ids"]) for prompt, answer in pairs]
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.int64), torch.full((len(rows), longest), -100)
    for row, (prompt, answer) in enumerate(rows):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        wrapped(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    wrapped.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


def edit(file: Path, **keys: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
