"""Real, tiny language models for the tests: built in milliseconds, saved as ordinary Hugging Face folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


def tiny_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the given words, the three special tokens first."""
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys([PAD, EOS, UNKNOWN, *words]))}
    core = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN)


def tiny_model(folder: Path, words: Sequence[str], seed: int = 0, layers: int = 2, width: int = 32) -> Path:
    """Write a random Llama of the given size and seed, with its tokenizer, into `folder`; returns the folder."""
    tokenizer = tiny_tokenizer(words)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return save(model, tokenizer, folder)


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Write model and tokenizer as one folder, safetensors only."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def teach(
    folder: Path, pairs: Sequence[tuple[str, str]], into: Path, steps: int = 150, rate: float = 3e-3, seed: int = 0
) -> Path:
    """Train the model of `folder` on (prompt, answer) pairs for some full-batch steps and write it to `into`."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt, _ in pairs]
    end = [tokenizer.eos_token_id]
    answers = [tokenizer(answer, add_special_tokens=False)["input_ids"] + end for _, answer in pairs]
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(pairs), length), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), length), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    torch.manual_seed(seed)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    return save(model.eval(), tokenizer, into)
