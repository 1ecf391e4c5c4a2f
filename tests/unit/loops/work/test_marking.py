"""Marking pays the strict verdict plus a bounded bonus, group by group, and remembers what it taught."""

from __future__ import annotations

from loops.reward.features import USUAL
from loops.reward.shaping import Evidence, Shaping
from loops.work.marking import KEPT_SUCCESSES, REWARD_SCALE, Marking, Question, Record
from safety.yardstick.items import Item
from safety.yardstick.verifiers import exact, numeric

END = 9
ITEMS = [Item.of("say one two", "one two"), Item.of("say three four", "three four")]


def marking(shaping: Shaping, group: int = 2, references: bool = True) -> Marking:
    questions = [Question(item, [1, place], exact) for place, item in enumerate(ITEMS)]
    record = Record(0, Evidence.empty(USUAL).to_json())
    return Marking(questions, group, frozenset({END}), shaping, 0.4, record, references)


def test_without_a_shaping_the_reward_is_the_verdict_scaled() -> None:
    marks = marking(Shaping())
    rewards = marks(["one two", "one", "no", "three four"], [[5, END], [6, END], [7, END], [8, END]], [0, 0, 1, 1])
    assert rewards == [REWARD_SCALE, 0.0, 0.0, REWARD_SCALE]
    assert marks.record.truth == marks.record.proxy == [0.5]
    assert (marks.record.groups, marks.record.mixed_groups, marks.record.flat) == (2, 2, [0.0])


def test_a_right_text_that_the_model_did_not_end_is_wrong() -> None:
    assert marking(Shaping())(["one two", "one two"], [[5, 5], []], [0, 0]) == [0.0, 0.0]


def test_partial_credit_orders_wrong_answers_and_never_reaches_a_right_one() -> None:
    marks = marking(Shaping({"places": 1.0}, 0.5), group=4)
    rewards = marks(["one two", "one", "no", "one nine"], [[5, END]] * 4, [0] * 4)
    assert rewards[0] > rewards[3] == rewards[1] > rewards[2]
    assert rewards[0] - rewards[1] >= 0.5 * REWARD_SCALE
    assert marks.record.proxy[0] != marks.record.truth[0]


def test_own_successes_are_kept_up_to_a_limit_and_failures_are_not() -> None:
    marks = marking(Shaping())
    for _ in range(KEPT_SUCCESSES):
        marks(["one two", "no", "no", "three four"], [[5, END], [6, END], [7, END], [8, END]], [0, 0, 1, 1])
    assert len(marks.record.right) == KEPT_SUCCESSES
    assert marks.record.right[-2:] == [([1, 0], [5, END]), ([1, 1], [8, END])]
    assert marks.record.tokens == KEPT_SUCCESSES * 16


def test_evidence_learns_from_references_which_feature_tells_right_from_wrong() -> None:
    marks = marking(Shaping())
    for _ in range(10):
        marks(["one", "nine", "three nine", "no"], [[5, END]] * 4, [0, 0, 1, 1])
    evidence = Evidence.from_json(marks.record.evidence)
    assert evidence.referenced == evidence.groups == 20
    assert evidence.success == 0.0
    assert evidence.weights().get("places", 0.0) > 0
    assert marks.record.rank_correlation is None


def test_without_references_only_mixed_groups_speak_and_no_feature_sees_the_answer() -> None:
    marks = marking(Shaping({"places": 1.0}, 0.4), references=False)
    rewards = marks(["one", "nine", "three four", "no"], [[5, END]] * 4, [0, 0, 1, 1])
    evidence = Evidence.from_json(marks.record.evidence)
    assert (evidence.groups, evidence.referenced, evidence.rows) == (1, 0, 2.0)
    assert rewards == [0.0, 0.0, REWARD_SCALE, 0.0]
    marks(["one", "nine", "nothing", "no"], [[5, END]] * 4, [0, 0, 1, 1])
    assert Evidence.from_json(marks.record.evidence).sxx == evidence.sxx


def test_groups_whose_rewards_are_all_equal_are_counted_group_by_group() -> None:
    marks = marking(Shaping())
    marks(["no", "no", "three four", "no"], [[5, END]] * 4, [0, 0, 1, 1])
    assert marks.record.flat == [0.5]
    assert marks.record.mixed_groups == 1


def test_a_second_verifier_decides_nothing_and_its_disagreements_are_counted() -> None:
    item = Item.of("what is 990 + 10", "1000")
    question = Question(item, [1], exact, numeric)
    marks = Marking([question], 4, frozenset({END}), Shaping(), 0.4, Record(0, Evidence.empty(USUAL).to_json()))
    rewards = marks(["1000", "1,000", "1e3", "7"], [[5, END]] * 4, [0] * 4)
    assert rewards == [REWARD_SCALE, 0.0, 0.0, 0.0]
    assert (marks.record.judged_twice, marks.record.disagreed, marks.record.disagreement) == (4, 2, 0.5)


def test_equal_answers_of_a_group_are_judged_once() -> None:
    asked: list[str] = []

    def counted(item: Item, text: str) -> int:
        asked.append(text)
        return exact(item, text)

    marks = marking(Shaping(), group=4)
    marks.questions = [Question(ITEMS[0], [1], counted)]
    rewards = marks(["one two", "no", " one two", "one two"], [[5, END], [6, END], [5, END], [5, 5]], [0] * 4)
    assert rewards == [REWARD_SCALE, 0.0, REWARD_SCALE, 0.0]
    assert asked == ["one two", "no"]


def test_without_a_second_verifier_nothing_is_said_of_disagreement() -> None:
    marks = marking(Shaping())
    marks(["one two", "no"], [[5, END], [6, END]], [0, 0])
    assert marks.record.disagreement is None
