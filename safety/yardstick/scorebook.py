"""Scoring inside a worker that stays warm: models, tokens and scores are kept between jobs.

Whatever is kept is keyed by digests and items, so it can only save time. Invariant: a score from the book is the
number that scoring again in the same batch shape would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.scoring import BATCH, Encoded, Scored, Scores, encode_items, load_model, score_items
from state.jobs import Desk
from state.records import digest_of

_MODELS_KEPT: Final = 3
_SCORES_KEPT: Final = 1_000_000
_TOKENS_KEPT: Final = 200_000


@dataclass(slots=True)
class ScoreBook:
    """Scores of saved models, one job's view of the worker's cache. `scored` counts items that really were computed."""

    desk: Desk
    batch: int = BATCH
    scored: int = 0

    def scores(self, digest: str, name: str, task: TaskSpec, items: Sequence[Item]) -> Scores:
        """Scores of the model with this digest, found at the desk's input `name`, in the order of `items`."""
        known = self._known(digest, task)
        missing = list(dict.fromkeys(item for item in items if item not in known))
        if missing:
            scored = self.model(digest, name)
            fresh = score_items(scored, task, missing, self.batch, self.tokens(scored, digest, missing))
            known.update(zip(missing, fresh.tolist(), strict=True))
            self.scored += len(missing)
        return np.array([known[item] for item in items], dtype=np.float32)

    def model(self, digest: str, name: str) -> Scored:
        """The model with this digest, loaded from the desk's input `name` unless it is still in memory."""
        models: dict[tuple[str, str], Scored] = self.desk.cache.setdefault("yardstick.models", {})
        key = (digest, self.desk.device)
        found = models.pop(key, None) or self._load(models, name)
        models[key] = found                                               # the latest use stands last
        return found

    def _load(self, models: dict[tuple[str, str], Scored], name: str) -> Scored:
        while len(models) >= _MODELS_KEPT:
            del models[next(iter(models))]
        return load_model(self.desk.inputs[name], self.desk.device)

    def _known(self, digest: str, task: TaskSpec) -> dict[Item, float]:
        """Scores by item of one model, verifier, device and batch shape."""
        book: dict[Any, dict[Item, float]] = self.desk.cache.setdefault("yardstick.scores", {})
        if sum(map(len, book.values())) > _SCORES_KEPT:
            book.clear()
        how = "exact" if task.verifier == "exact" else digest_of([task.verifier, dict(task.source)])
        return book.setdefault((digest, how, self.desk.device, self.batch), {})

    def tokens(self, scored: Scored, digest: str, items: Sequence[Item]) -> list[Encoded]:
        """One tokenisation per item and tokenizer, however many models with that tokenizer are scored."""
        prints: dict[str, str] = self.desk.cache.setdefault("yardstick.tokenizers", {})
        if digest not in prints:
            prints[digest] = _fingerprint(scored.tokenizer)
        book: dict[str, dict[Item, Encoded]] = self.desk.cache.setdefault("yardstick.tokens", {})
        if sum(map(len, book.values())) > _TOKENS_KEPT:
            book.clear()
        known = book.setdefault(prints[digest], {})
        missing = [item for item in items if item not in known]
        pairs = [(item.prompt, item.answer) for item in missing]
        known.update(zip(missing, encode_items(scored.tokenizer, pairs), strict=True))
        return [known[item] for item in items]


def _fingerprint(tokenizer: Any) -> str:
    core = getattr(tokenizer, "backend_tokenizer", None)
    body = core.to_str() if core is not None else sorted(tokenizer.get_vocab().items())
    return digest_of([body, tokenizer.eos_token_id, tokenizer.bos_token_id])
