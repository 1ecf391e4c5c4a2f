"""Training rows as token ids, mixed by shares, with loss on the answer and its end only.

Which row stands at which place of which step is a function of the seed and the place alone, so a run that is carried
on in the middle sees what the undisturbed one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from safety.yardstick.scoring import Encoded, encode_items, pad_id
from safety.yardstick.training import Row, Turns, rows_in
from state.records import seed_from

IGNORED = -100
ROWS_AT_ONCE = 16
GOLDEN = (5**0.5 - 1) / 2          # multiples of it modulo 1 fill [0, 1) evenly from the first one on

Places = npt.NDArray[np.int64]
Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Rows:
    """Every row, and the places of each source among them."""

    texts: Sequence[Row]
    sources: Mapping[str, range]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Some rows by their place: ids of the prompt, and ids of the answer with the end token."""

    rows: Mapping[int, Encoded]
    pad: int

    def batch(self, places: Iterable[int]) -> Batch:
        """input_ids, attention_mask and labels of some rows, (rows, longest), padded on the right."""
        return pad_rows([self.rows[place] for place in places], self.pad)

    def count(self, places: Iterable[int]) -> int:
        """Tokens of some rows, padding left out."""
        return sum(len(self.rows[place][0]) + len(self.rows[place][1]) for place in places)


def pad_rows(rows: Sequence[Encoded], pad: int) -> Batch:
    """input_ids, attention_mask and labels, (rows, longest), padded on the right; labels cover the answers only."""
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    spare = [longest - len(prompt) - len(answer) for prompt, answer in rows]
    parts = list(zip(rows, spare, strict=True))
    return {
        "input_ids": torch.tensor([[*p, *a, *[pad] * n] for (p, a), n in parts]),
        "attention_mask": torch.tensor([[1] * (longest - n) + [0] * n for n in spare]),
        "labels": torch.tensor([[IGNORED] * len(p) + [*a] + [IGNORED] * n for (p, a), n in parts]),
    }


def read_rows(inputs: Mapping[str, Path]) -> Rows:
    """Every row of every input named "data:<source>", a file or a folder of them; a source of preferences gives none.
    Raises RowError.
    """
    texts: list[Row] = []
    sources: dict[str, range] = {}
    for name, path in _sources(inputs):
        begin = len(texts)
        texts += [row for row in rows_in(path) if len(row) == 2]
        sources[name] = range(begin, len(texts))
    return Rows(texts, sources)


def read_pairs(inputs: Mapping[str, Path]) -> Rows:
    """Every preference of the same inputs: the places are theirs, and the row of the chosen answer of place p is
    text 2p, that of the rejected one 2p + 1. A source of other rows gives none. Raises RowError.
    """
    texts: list[Row] = []
    sources: dict[str, range] = {}
    for name, path in _sources(inputs):
        begin = len(texts) // 2
        for row in rows_in(path):
            if len(row) == 3:
                texts += [(row[0], row[1]), (row[0], row[2])]
        sources[name] = range(begin, len(texts) // 2)
    return Rows(texts, sources)


def halves(places: Iterable[int]) -> list[int]:
    """The rows of some pairs: the chosen answers of all, then the rejected ones."""
    known = list(places)
    return [2 * place + half for half in (0, 1) for place in known]


def tokenise(rows: Rows, places: Iterable[int], tokenizer: Any) -> Tokens:
    """The rows at these places, each once. ValueError for a conversation where the tokenizer has no template for it."""
    chosen = sorted(set(places))
    plain: dict[int, tuple[str, str]] = {}
    tokens: dict[int, Encoded] = {}
    for place in chosen:
        asked, answer = rows.texts[place]
        if isinstance(asked, str):
            plain[place] = asked, answer
        else:
            tokens[place] = _spoken(tokenizer, asked, answer)
    tokens |= zip(plain, encode_items(tokenizer, list(plain.values())), strict=True)
    return Tokens(tokens, pad_id(tokenizer))


def _spoken(tokenizer: Any, turns: Turns, answer: str) -> Encoded:
    """A conversation by the tokenizer's own template: what precedes the answer, and the answer with what ends it."""
    if not tokenizer.chat_template:
        raise ValueError("a training row is a conversation, and the tokenizer of the model has no chat template")
    before = [{"role": role, "content": content} for role, content in turns]
    said = {"role": "assistant", "content": answer}
    asked = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*before, said], tokenize=False)
    if not whole.startswith(asked):
        raise ValueError("the chat template of the model does not put an answer behind what it asks with")
    prompt, rest = tokenizer([asked, whole.removeprefix(asked)], add_special_tokens=False)["input_ids"]
    return list(prompt), list(rest)


def mixed(rows: Rows, shares: Mapping[str, float], batch: int, steps: range, seed: int) -> Places:
    """The rows of some steps of an endless mixture, (steps, batch).

    Sources take turns evenly by their shares (a source without rows, or without a share, has none); within a source
    rows come epoch after epoch, each in an order of its own. No shares at all: no rows. ValueError when no source with
    a share has rows.
    """
    if not shares:
        return np.empty((len(steps), 0), dtype=np.int64)
    live = {name: share for name, share in sorted(shares.items()) if share > 0 and rows.sources.get(name)}
    if not live:
        raise ValueError(f"no rows to train on: shares {dict(shares)}, sources {sorted(rows.sources)}")
    names, weights = list(live), np.cumsum(list(live.values()))
    offset = np.random.default_rng(seed_from(seed, "turns")).random()
    turns = np.searchsorted(weights / weights[-1], (offset + GOLDEN * np.arange(steps.stop * batch)) % 1.0, "right")
    places = np.empty(steps.stop * batch, dtype=np.int64)
    for number, name in enumerate(names):
        mine = np.flatnonzero(turns == number)
        places[mine] = rows.sources[name].start + _in_epochs(len(rows.sources[name]), len(mine), seed, name)
    return places.reshape(steps.stop, batch)[steps.start:]


def used_of(rows: Rows, tokens: Tokens, places: Sequence[int]) -> dict[str, dict[str, int]]:
    """{source: {"rows", "tokens"}} of what stands at these places, repetitions counted."""
    mine = {name: [place for place in places if place in held] for name, held in rows.sources.items()}
    return {name: {"rows": len(held), "tokens": tokens.count(held)} for name, held in mine.items() if held}


def answer_loss(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy over the labelled tokens; the head runs only where some row has a label."""
    labels = batch["labels"][:, 1:]
    asked = (labels != IGNORED).any(dim=0).nonzero().flatten()
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=asked, use_cache=False
    ).logits
    return cross_entropy(logits.float().flatten(0, 1), labels[:, asked].flatten(), ignore_index=IGNORED)


def answer_log_p(model: torch.nn.Module, rows: Sequence[Encoded], pad: int, device: str) -> list[list[float]]:
    """ln p of every token of every answer, given its prompt and what precedes it."""
    return [
        values
        for begin in range(0, len(rows), ROWS_AT_ONCE)
        for values in _answer_log_p(model, rows[begin:begin + ROWS_AT_ONCE], pad, device)
    ]


def answer_entropy(model: torch.nn.Module, rows: Sequence[Encoded], pad: int, device: str) -> list[float]:
    """Mean entropy, in nats, of what a model might have written at each place of an answer, given what precedes."""
    found: list[float] = []
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[begin:begin + ROWS_AT_ONCE]
        log_p, _ = _log_p(model, part, pad, device)
        entropy = -(log_p.exp() * log_p).nansum(dim=-1).cpu()           # 0 ln 0 is 0
        found += [float(entropy[row, places].mean()) for row, places in enumerate(_of_answers(part))]
    return found


def _answer_log_p(model: torch.nn.Module, rows: Sequence[Encoded], pad: int, device: str) -> list[list[float]]:
    log_p, ids = _log_p(model, rows, pad, device)
    chosen = log_p.gather(2, ids[:, 1:, None]).squeeze(2).cpu()
    return [chosen[row, places].tolist() for row, places in enumerate(_of_answers(rows))]


def _log_p(model: torch.nn.Module, rows: Sequence[Encoded], pad: int, device: str) -> tuple[Tensor, Tensor]:
    """ln p of every token at every place but the first [row, place, token], and the ids [row, place]."""
    batch = to_device(pad_rows(rows, pad), device)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return logits[:, :-1].float().log_softmax(dim=-1), batch["input_ids"]


def _of_answers(rows: Sequence[Encoded]) -> list[slice]:
    """Where in a row its answer stands, the first place left out."""
    return [slice(len(prompt) - 1, len(prompt) + len(answer) - 1) for prompt, answer in rows]


def to_device(batch: Batch, device: str) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _sources(inputs: Mapping[str, Path]) -> list[tuple[str, Path]]:
    return [(name.removeprefix("data:"), inputs[name]) for name in sorted(inputs) if name.startswith("data:")]


def _in_epochs(size: int, count: int, seed: int, name: str) -> Places:
    epochs = [
        np.random.default_rng(seed_from(seed, "order", name, epoch)).permutation(size)
        for epoch in range(-(-count // size))
    ]
    return np.concatenate([*epochs, np.empty(0, dtype=np.int64)])[:count]
