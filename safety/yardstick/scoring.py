"""Scoring a model on items: the only file of the yardstick that touches torch.

Exact match needs no decoding: one pass over prompt + reference tells whether greedy decoding would write the reference
and stop. An item always meets the same tensor shape (rows, length, answer width), whichever other items are scored
with it, so that two models, and the same model on two days, are measured alike. Rows are padded on the right and no
mask is passed: every model here is causal, so what comes after an answer cannot change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils.logging import disable_progress_bar

from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.verifiers import Verifier, make_verifier

Scores = npt.NDArray[np.float32]
Encoded = tuple[list[int], list[int]]
"""Ids of the prompt, and ids of the answer with the end token."""

BATCH: Final = 64
_MOST_LOGITS: Final = 2**27
_OWN_HEAD: Final = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
"""Settings of models that change their logits after the head, which then must compute its own logits."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A model in memory, ready to be scored, with its tokenizer."""

    model: Any
    tokenizer: Any


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows of one shape. `places` are the items' places in the caller's order; rows beyond them are padding."""

    places: list[int]
    ids: torch.Tensor          # [rows, length]
    reads: torch.Tensor        # [rows, width]: position whose logits predict the answer token
    targets: torch.Tensor      # [rows, width]
    real: torch.Tensor         # [rows, width]: False on padding


def load_model(path: Path, device: str) -> Scored:
    """Load a Hugging Face folder for scoring: safetensors only, no remote code, bfloat16 on CUDA, float32 on CPU.

    Raises ValueError with one line for a folder that cannot be loaded.
    """
    if not (path / "config.json").is_file():
        raise ValueError(f"{path}: no config.json, so this is no model folder")
    if not any(path.glob("*.safetensors")):
        raise ValueError(f"{path}: no safetensors weights, other formats are not loaded")
    try:
        loaded = auto_class(path).from_pretrained(path, **_loading(device))
        return _ready(loaded, load_tokenizer(path), device)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def assemble_model(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], tokenizer: Any, device: str
) -> Scored:
    """The model that `load_model` would load from a folder with this config, these tensors and this tokenizer.

    It goes through the same loading, from memory; where device and dtype are right already, tensors are shared with the
    caller. ValueError with one line where they are not those of the config.
    """
    try:
        kind = CONFIG_MAPPING[config["model_type"]]
        parsed = kind.from_dict(dict(config))
        model = MODEL_FOR_CAUSAL_LM_MAPPING[kind].from_pretrained(
            None, config=parsed, state_dict=dict(tensors), **_loading(device)
        )
        return _ready(model, tokenizer, device)
    except (KeyError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"a model put together in memory: {' '.join(str(error).split())}") from error


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a model folder."""
    return AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)


def _loading(device: str) -> dict[str, Any]:
    """How every model is loaded."""
    disable_progress_bar()
    return {
        "dtype": torch.bfloat16 if device.startswith("cuda") else torch.float32, "use_safetensors": True,
        "trust_remote_code": False, "local_files_only": True, "output_loading_info": True,
    }


def _ready(loaded: tuple[Any, Mapping[str, Any]], tokenizer: Any, device: str) -> Scored:
    """A loaded model ready to be scored. Raises ValueError."""
    model, loading = loaded
    if loading["missing_keys"]:
        raise ValueError(f"weights are missing, {min(loading['missing_keys'])} among them")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token, so no answer could end")
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=pad_id(tokenizer))
    return Scored(model.to(device).eval().requires_grad_(False), tokenizer)


def auto_class(path: Path) -> Any:
    """The class of transformers that loads a folder: a language model, or one that sees and is asked in text alone."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText


def stored_names(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of a loaded model by the names that they have on disk: some models load under others."""
    tensors: dict[str, torch.Tensor] = revert_weight_conversion(model, model.state_dict())
    return tensors


def pad_id(tokenizer: Any) -> int:
    """The padding token, or the end token where there is none."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)


def encode(tokenizer: Any, prompt: str, answer: str) -> Encoded:
    """Ids of the prompt and of the answer with the end token: the convention of scoring and training."""
    return encode_items(tokenizer, [(prompt, answer)])[0]


def encode_items(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Encoded]:
    """`encode` for many (prompt, answer) pairs in one call of the tokenizer."""
    if not pairs:
        return []
    texts = [prompt for prompt, _ in pairs] + [" " + answer for _, answer in pairs]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    eos = int(tokenizer.eos_token_id)
    start = eos if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
    half = len(pairs)
    return [(list(ids[i]) or [start], [*ids[half + i], eos]) for i in range(half)]


def teacher_forced(
    model: Any, tokenizer: Any, items: Sequence[Item], batch: int = BATCH, encoded: Sequence[Encoded] | None = None
) -> Scores:
    """1 where greedy decoding writes exactly the reference's tokens and stops, else 0; one number an item.

    Equal to generation without generating. An answer with an unknown token, or with the end token inside, is never
    right: greedy decoding could not write it.
    """
    encoded = encode_items(tokenizer, [(i.prompt, i.answer) for i in items]) if encoded is None else encoded
    scores = np.zeros(len(items), dtype=np.float32)
    for rows in _batches(encoded, batch, tokenizer, model.device):
        right = ((_answer_argmax(model, rows) == rows.targets) | ~rows.real).all(dim=1)
        scores[rows.places] = right.float().cpu().numpy()[: len(rows.places)]
    eos, unknown = tokenizer.eos_token_id, tokenizer.unk_token_id
    for place, (_, answer) in enumerate(encoded):
        if eos in answer[:-1] or (unknown is not None and unknown != eos and unknown in answer):
            scores[place] = 0.0
    return scores


def expected_success(
    model: Any, tokenizer: Any, items: Sequence[Item], batch: int = BATCH, encoded: Sequence[Encoded] | None = None
) -> Scores:
    """exp(sum of log p of the reference, end token included) for each item: how often sampling would be right."""
    encoded = encode_items(tokenizer, [(i.prompt, i.answer) for i in items]) if encoded is None else encoded
    scores = np.zeros(len(items), dtype=np.float32)
    for rows in _batches(encoded, batch, tokenizer, model.device):
        total = _answer_log_p(model, rows).masked_fill(~rows.real, 0.0).sum(dim=1)
        scores[rows.places] = total.exp().float().cpu().numpy()[: len(rows.places)]
    return scores


def generate_texts(
    model: Any, tokenizer: Any, items: Sequence[Item], batch: int = BATCH, encoded: Sequence[Encoded] | None = None
) -> list[str]:
    """What greedy decoding writes for each prompt, special tokens removed, up to about twice the reference's length."""
    encoded = encode_items(tokenizer, [(i.prompt, i.answer) for i in items]) if encoded is None else encoded
    texts = [""] * len(items)
    for (length, width), places in _groups(encoded, lambda e: (_bucket(len(e[0])), 2 * _bucket(len(e[1])))):
        for start in range(0, len(places), batch):
            part = places[start : start + batch]
            ids = _left_padded([encoded[p][0] for p in part], batch, length, pad_id(tokenizer), model.device)
            written = _generate(model, ids[0], ids[1], width)[: len(part)]
            for place, text in zip(part, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
                texts[place] = text.strip()
    return texts


def generate_scores(
    model: Any, tokenizer: Any, items: Sequence[Item], verifier: Verifier, batch: int = BATCH,
    encoded: Sequence[Encoded] | None = None,
) -> Scores:
    """Greedy generation judged by a verifier, for tasks where several answers are right."""
    texts = generate_texts(model, tokenizer, items, batch, encoded)
    return np.array([verifier(i, text) for i, text in zip(items, texts, strict=True)], dtype=np.float32)


def score_items(
    scored: Scored, task: TaskSpec, items: Sequence[Item], batch: int = BATCH, encoded: Sequence[Encoded] | None = None
) -> Scores:
    """One 0 or 1 an item, by the cheapest path that is right for the task's verifier."""
    if task.verifier == "exact":
        return teacher_forced(scored.model, scored.tokenizer, items, batch, encoded)
    return generate_scores(scored.model, scored.tokenizer, items, make_verifier(task), batch, encoded)


def _bucket(length: int, least: int = 8) -> int:
    """The grid of lengths: 8 16 24 32 48 64 96 128 192 ... never more than half too long."""
    size = least
    while size < length:
        if size < 32:
            size += 8
        else:
            size += size // 2 if size & (size - 1) == 0 else size // 3
    return size


def _groups(encoded: Sequence[Encoded], key: Any) -> list[tuple[tuple[int, int], list[int]]]:
    groups: dict[tuple[int, int], list[int]] = {}
    for place, tokens in enumerate(encoded):
        groups.setdefault(key(tokens), []).append(place)
    return sorted(groups.items())


def _batches(encoded: Sequence[Encoded], batch: int, tokenizer: Any, device: torch.device) -> Iterator[_Batch]:
    pad = pad_id(tokenizer)
    shapes = _groups(encoded, lambda e: (_bucket(len(e[0]) + len(e[1]) - 1, 16), _bucket(len(e[1]))))
    for (length, width), places in shapes:
        for start in range(0, len(places), batch):
            yield _batch([encoded[p] for p in places[start : start + batch]], places[start : start + batch],
                         (batch, length, width), pad, device)


def _batch(
    tokens: Sequence[Encoded], places: list[int], shape: tuple[int, int, int], pad: int, device: torch.device
) -> _Batch:
    rows, length, width = shape
    ids = np.full((rows, length), pad, dtype=np.int64)
    reads = np.zeros((rows, width), dtype=np.int64)
    targets = np.zeros((rows, width), dtype=np.int64)
    real = np.zeros((rows, width), dtype=np.bool_)
    for row, (prompt, answer) in enumerate(tokens):
        known = prompt + answer[:-1]                         # nothing is predicted from the end token
        ids[row, : len(known)] = known
        reads[row, : len(answer)] = np.arange(len(prompt) - 1, len(known))
        targets[row, : len(answer)] = answer
        real[row, : len(answer)] = True
    return _Batch(places, *(torch.from_numpy(a).to(device) for a in (ids, reads, targets, real)))


@torch.inference_mode()
def _answer_logits(model: Any, rows: _Batch) -> Iterator[tuple[slice, torch.Tensor]]:
    """Logits at the answer positions only, [some rows, width, vocabulary] at a time."""
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    step = max(1, _MOST_LOGITS // (rows.reads.shape[1] * vocabulary))
    own = any(getattr(model.config.get_text_config(), name, None) not in (None, 1.0) for name in _OWN_HEAD)
    if own or model.base_model is model:
        logits = model(input_ids=rows.ids, use_cache=False).logits
        yield slice(0, len(rows.ids)), logits.gather(1, rows.reads[..., None].expand(-1, -1, logits.shape[-1]))
        return
    hidden = model.base_model(input_ids=rows.ids, use_cache=False).last_hidden_state
    wanted = hidden.gather(1, rows.reads[..., None].expand(-1, -1, hidden.shape[-1]))
    head = model.get_output_embeddings()
    for start in range(0, len(wanted), step):
        yield slice(start, start + step), head(wanted[start : start + step])


@torch.inference_mode()
def _answer_argmax(model: Any, rows: _Batch) -> torch.Tensor:
    return torch.cat([logits.argmax(dim=-1) for _, logits in _answer_logits(model, rows)])


@torch.inference_mode()
def _answer_log_p(model: Any, rows: _Batch) -> torch.Tensor:
    parts = [
        logits.float().log_softmax(dim=-1).gather(2, rows.targets[where][..., None]).squeeze(2)
        for where, logits in _answer_logits(model, rows)
    ]
    return torch.cat(parts)


def _left_padded(
    prompts: Sequence[list[int]], rows: int, length: int, pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    ids = np.full((rows, length), pad, dtype=np.int64)
    mask = np.zeros((rows, length), dtype=np.int64)
    for row in range(rows):
        prompt = prompts[min(row, len(prompts) - 1)]          # rows beyond the last repeat it
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


@torch.inference_mode()
def _generate(model: Any, ids: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
    written: torch.Tensor = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=width
    )
    return written[:, ids.shape[1] :]
