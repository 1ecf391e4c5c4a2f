"""Marks sampled answers: strict verdict, features, shaped reward, evidence, and the answers that were right.

It is the reward function that GRPO calls, and it keeps what the marks taught, as a value that a checkpoint can hold.
No tensors here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from loops.reward.catalogue import measure
from loops.reward.shaping import Evidence, Group, Shaping, bonus, rank_correlation, score, shaped_reward
from safety.yardstick.items import Item
from safety.yardstick.verifiers import Verifier
from state.records import JsonObject

REWARD_SCALE: Final = 1 / 0.3
"""Advantages are divided by a constant, never by a deviation: in an all-wrong group that would undo every bound."""
KEPT_SUCCESSES: Final = 512

Phis = Callable[[Sequence[tuple[str, str]]], list[float]]
Answer = tuple[list[int], list[int]]
"""Ids of the prompt and of a right answer with its end token."""


@dataclass(frozen=True, slots=True)
class Question:
    """An item to be answered, the ids of its prompt, and the verifier of its task; a second one where it names it."""

    item: Item
    ids: list[int]
    verifier: Verifier
    second: Verifier | None = None


@dataclass(slots=True)
class Record:
    """What a segment has learned so far, beside weights and moments: exactly what a checkpoint keeps of it.

    Lists have one value a step; `scores` and `truths` one a completion. `right` holds the last own successes, `cut`
    is how many steps the cap of tokens left undone; of `judged_twice` answers the verifiers `disagreed` about some.
    """

    step: int
    evidence: JsonObject
    right: list[Answer] = field(default_factory=list)
    truth: list[float] = field(default_factory=list)
    proxy: list[float] = field(default_factory=list)
    bonus: list[float] = field(default_factory=list)
    flat: list[float] = field(default_factory=list)
    clipped: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    truths: list[float] = field(default_factory=list)
    groups: int = 0
    mixed_groups: int = 0
    tokens: int = 0
    q_before: list[float] = field(default_factory=list)
    start: list[Answer] = field(default_factory=list)
    start_log_p: list[list[float]] = field(default_factory=list)
    micro_batch: int = 0
    stopped: str | None = None
    cut: int = 0
    judged_twice: int = 0
    disagreed: int = 0

    def to_json(self) -> JsonObject:
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def rank_correlation(self) -> float | None:
        """Between how good the shaping's features call an answer and whether it is right; None where either is flat."""
        return rank_correlation(self.scores, self.truths)

    @property
    def disagreement(self) -> float | None:
        """Share of the answers that a second verifier called otherwise; None where no task has one."""
        return self.disagreed / self.judged_twice if self.judged_twice else None


@dataclass(slots=True)
class Marking:
    """TRL's reward function. `latest` holds the answers of the last call, right or wrong.

    Without `references` an item's answer is one of several: the verifier may use it, features and evidence may not.
    `by_model` has what measures phi of some (prompt, answer) for features that the texts alone tell nothing of.
    """

    questions: Sequence[Question]
    group: int
    ends: frozenset[int]
    shaping: Shaping
    proxy_strength: float
    record: Record
    references: bool = True
    by_model: Mapping[str, Phis] = field(default_factory=dict)
    latest: list[Answer] = field(default_factory=list)
    __name__: str = "marking"

    def __call__(
        self, completions: list[str], completion_ids: list[list[int]], question: list[int], **_: Any
    ) -> list[float]:
        """One scaled reward a completion; groups of `group` neighbours answer the same question."""
        evidence = Evidence.from_json(self.record.evidence)
        evidence = evidence.decay() if self.references else evidence
        names = sorted({*evidence.features, *self.shaping.weights})
        self.latest = []
        rewards: list[float] = []
        truths: list[float] = []
        bonuses: list[float] = []
        spoken: list[Group] = []
        for begin in range(0, len(completions), self.group):
            asked = self.questions[question[begin]]
            texts = [text.strip() for text in completions[begin:begin + self.group]]
            ids = completion_ids[begin:begin + self.group]
            r0 = self._right(asked, texts, ids)
            reference = asked.item.answer if self.references else None
            told = self._measured(names, asked.item.prompt, texts, reference)
            rows = {text: [phi[name] for name in evidence.features] for text, phi in told.items()}
            spoken.append((
                [(rows[text], r) for text, r in zip(texts, r0, strict=True)],
                None if reference is None else rows[reference],
            ))
            phis = [told[text] for text in texts]
            group = [shaped_reward(r, phi, self.shaping) for r, phi in zip(r0, phis, strict=True)]
            self._count(r0, group)
            rewards += group
            truths += r0
            bonuses += [bonus(r, phi, self.shaping.weights) for r, phi in zip(r0, phis, strict=True)]
            self.record.scores += [score(phi, self.shaping) for phi in phis]
            self.latest += [(asked.ids, list(written)) for written in ids]
        self._close(evidence.add_groups(spoken), truths, bonuses, len(rewards) // self.group)
        return [reward * REWARD_SCALE for reward in rewards]

    def _measured(
        self, names: Sequence[str], prompt: str, texts: Sequence[str], reference: str | None
    ) -> dict[str, dict[str, float]]:
        """phi of each answer of a group, equal ones looked at once, and of the reference itself where there is one."""
        answers = list(dict.fromkeys(texts if reference is None else [*texts, reference]))
        told = {answer: measure(names, prompt, answer, reference, texts) for answer in answers}
        for name in sorted(self.by_model.keys() & set(names)):
            phis = self.by_model[name]([(prompt, answer) for answer in answers])
            for answer, phi in zip(answers, phis, strict=True):
                told[answer][name] = phi
        return told

    def _right(self, asked: Question, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> list[float]:
        """r0 of each answer of a group: right by the task's strict verifier, which is asked once about equal ones, and
        ended by the model itself.
        """
        verdicts = {text: asked.verifier(asked.item, text) == 1 for text in dict.fromkeys(texts)}
        if asked.second is not None:
            others = {text: asked.second(asked.item, text) == 1 for text in verdicts}
            self.record.judged_twice += len(texts)
            self.record.disagreed += sum(verdicts[text] != others[text] for text in texts)
        return [
            float(bool(written) and written[-1] in self.ends and verdicts[text])
            for text, written in zip(texts, ids, strict=True)
        ]

    def _count(self, r0: Sequence[float], rewards: Sequence[float]) -> None:
        self.record.groups += 1
        self.record.mixed_groups += 0 < sum(r0) < len(r0)
        self.record.flat.append(float(max(rewards) - min(rewards) < 1e-9))

    def _close(self, evidence: Evidence, truths: list[float], bonuses: list[float], groups: int) -> None:
        record = self.record
        record.evidence = evidence.to_json()
        record.truths += truths
        record.truth.append(sum(truths) / len(truths))
        record.bonus.append(sum(bonuses) / len(bonuses))
        record.proxy.append(record.truth[-1] + self.proxy_strength * record.bonus[-1])
        record.flat[-groups:] = [sum(record.flat[-groups:]) / groups]
        record.right += [answer for answer, r in zip(self.latest, truths, strict=True) if r == 1.0]
        del record.right[:-KEPT_SUCCESSES]
        record.tokens += sum(len(prompt) + len(written) for prompt, written in self.latest)
