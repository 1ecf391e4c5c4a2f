"""A small world for the study of rewards: a model of 86 thousand parameters that is to sort six digits.

It learns from rows of three to six digits until it sorts six as often as a level asks, which is where reinforcement
begins. The task is a file of the operator's, sealed by the product's own job; the vault is never trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loops.work.pretrain import answer_loss, encode
from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.scoring import expected_success
from safety.yardstick.sealed import load_vault
from safety.yardstick.tasks import pinned, unplaced
from state.files import manifest_of
from state.jobs import JobSpec
from state.records import JsonObject, digest_of, seed_from
from studies.world import Workshop

DIGITS = tuple(str(digit) for digit in range(10))
PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"
WORDS = (PAD, END, UNKNOWN, "sort", "=", *DIGITS)
LENGTH, ITEMS, VAULT = 6, 12_000, 1_000
SHORTEST = 3
BATCH, RATE, MOST_STEPS, LOOK_EVERY, PROBE = 64, 1e-3, 4_000, 1, 256


@dataclass(frozen=True, slots=True)
class Sorting:
    """The world of one seed and level. `task` is what loops get; `vault` are the items nobody trains on."""

    seed: int
    level: float
    start: float
    model: str
    folders: dict[str, Path]
    task: JsonObject
    seal: str
    vault: tuple[Item, ...]


def world_of(seed: int, level: float, folder: Path) -> Sorting:
    """The world in which the model sorts about `level` of six digits right when sampled. Made in `folder` at need.

    `start` is how often it does. RuntimeError where it never gets there.
    """
    home = folder / f"sorting-{seed}-{level:g}"
    file = folder / f"sorting-{seed}.jsonl"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in _items(seed)))
    told = pinned(TaskSpec("sorting", "target", {"kind": "jsonl", "path": str(file)}, vault_items=VAULT))
    workshop = Workshop(folder / f"sealing-{seed}", {})
    sealed = workshop.run(JobSpec("seal", {}, {"tasks": [told.to_json()]}, seed)).outputs
    vault = tuple(load_vault(workshop.folders[sealed["vault"]], told))
    if not (home / "start").is_file():
        start = _taught(seed, level, vault, home)
        (home / "start").write_text(repr(start))
    model = home / "model"
    folders = {digest_of(manifest_of(model)): model, sealed["seal"]: workshop.folders[sealed["seal"]]}
    return Sorting(
        seed, level, float((home / "start").read_text()), next(iter(folders)), folders, unplaced(told).to_json(),
        sealed["seal"], vault,
    )


def _items(seed: int) -> Iterator[dict[str, str]]:
    draw = np.random.default_rng(seed_from("sorting", seed))
    for number in draw.permutation(10**LENGTH)[:ITEMS].tolist():
        yield _row([int(digit) for digit in f"{number:0{LENGTH}d}"])


def _row(digits: list[int]) -> dict[str, str]:
    return {"prompt": f"sort {' '.join(map(str, digits))} =", "answer": " ".join(map(str, sorted(digits)))}


def _taught(seed: int, level: float, vault: tuple[Item, ...], home: Path) -> float:
    """Train from nothing until the level is reached, write the model, and say how often it is right."""
    held = {item.prompt for item in vault}
    tokenizer, model = _tokenizer(), _fresh(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    draw = np.random.default_rng(seed_from("sorting", seed, "rows"))
    for step in range(MOST_STEPS):
        rows: list[tuple[str, str]] = []
        while len(rows) < BATCH:
            row = _row(draw.integers(10, size=draw.integers(SHORTEST, LENGTH + 1)).tolist())
            rows += [(row["prompt"], row["answer"])] if row["prompt"] not in held else []
        model.train()
        loss = answer_loss(model, *encode(tokenizer, rows))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % LOOK_EVERY == 0:
            model.eval()
            start = float(expected_success(model, tokenizer, vault[:PROBE]).mean())
            if start >= level:
                (home / "model").mkdir(parents=True, exist_ok=True)
                model.save_pretrained(home / "model", safe_serialization=True)
                tokenizer.save_pretrained(home / "model")
                return start
    raise RuntimeError(f"the model never sorts {level:.1%} of six digits (seed {seed})")


def _tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token=UNKNOWN))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=32,
    )


def _fresh(seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=48, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=32, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=WORDS.index(END), pad_token_id=WORDS.index(PAD),
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)
