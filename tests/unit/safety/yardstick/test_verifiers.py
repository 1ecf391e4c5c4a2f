"""Strict verifiers pay for right answers and for nothing else."""

from __future__ import annotations

import pytest

from safety.yardstick import gym
from safety.yardstick.items import Item, TaskSpec
from safety.yardstick.tasks import draw
from safety.yardstick.verifiers import canaries, exact, junk_paid, make_verifier, numeric, second_verifier
from state.records import Split

SUM = Item.of("what is 990 + 10", "1000")


def gym_task(generator: str, config: dict[str, object] | None = None) -> TaskSpec:
    source = {"kind": "reasoning_gym", "generator": generator, "config": config or {}}
    return TaskSpec(generator, "target", source, verifier="reasoning_gym")


@pytest.mark.parametrize(("text", "right"), [("1000", 1), (" 1000\n", 1), ("1,000", 0), ("1000.", 0), ("", 0)])
def test_exact_forgives_white_space_only(text: str, right: int) -> None:
    assert exact(SUM, text) == right


@pytest.mark.parametrize(
    ("text", "right"),
    [("1000", 1), ("1,000", 1), ("1e3", 1), ("1000.0", 1), ("+1000", 1), ("2000/2", 1), ("-1000", 0), ("1000 or 1", 0),
     ("10,00", 0), ("about 1000", 0), ("", 0), ("nan", 0), ("inf", 0), ("1000/0", 0),
     ("1e999999999", 0), ("\u0661\u0660\u0660\u0660", 0)],
)
def test_numeric_takes_one_number_of_the_right_value(text: str, right: int) -> None:
    assert numeric(SUM, text) == right


def test_no_verifier_pays_for_junk() -> None:
    items = [SUM, Item.of("what is 1 + 1", "2"), Item.of("what is 5 - 2", "3")]
    assert canaries(exact, items) == []
    assert canaries(numeric, items) == []


def test_canaries_name_a_verifier_that_pays_for_substrings_and_one_that_refuses_the_reference() -> None:
    items = [SUM, Item.of("what is 1 + 1", "2")]
    found = canaries(lambda item, text: int(item.answer in text), items)
    assert any("suffix" in problem for problem in found) and any("every option" in problem for problem in found)
    assert "the reference is not right" in canaries(lambda item, text: 0, items)[0]


@pytest.mark.parametrize(
    "generator", ["chain_sum", "countdown", "word_sorting", "word_ladder", "acre", "n_queens", "simple_equations"]
)
def test_generated_tasks_pay_for_their_reference_and_for_no_junk(generator: str) -> None:
    task = gym_task(generator)
    assert canaries(make_verifier(task), draw(task, Split.SEARCH, 4, 1)) == []


def test_another_right_answer_is_right_where_the_scorer_can_be_trusted() -> None:
    task = gym_task("countdown")
    item = draw(task, Split.SEARCH, 1, 3)[0]
    verifier = make_verifier(task)
    assert verifier(item, f"({item.answer})") == 1
    assert verifier(item, f"thinking... <answer>{item.answer}</answer>") == 1
    assert verifier(item, f"{item.answer} + 1") == 0


def test_a_scorer_that_pays_for_junk_is_believed_on_the_reference_only(monkeypatch: pytest.MonkeyPatch) -> None:
    task = gym_task("chain_sum")
    item = draw(task, Split.SEARCH, 1, 3)[0]

    class Generous:
        def __getitem__(self, number: int) -> dict[str, object]:
            return {"question": item.prompt, "answer": item.answer}

        def score_answer(self, answer: str, entry: object) -> float:
            return 1.0

    monkeypatch.setattr(gym, "_dataset", lambda generator, config: Generous())
    verifier = make_verifier(task)
    assert verifier(item, item.answer) == 1
    assert verifier(item, "anything") == 0


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('touch harm')", "open('harm','w')", "exit()", "9**9**9**9", "9**(9**9)", "(9**99)**99",
     "9**99999", "[x for x in ().__class__.__mro__]", "'a'*10**9", "1" * 100_000, "\x00", "((((((((("],
)
@pytest.mark.parametrize("generator", ["countdown", "simple_integration", "n_queens", "string_insertion"])
def test_harmful_text_is_wrong_and_is_never_run(
    generator: str, text: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("harm")
    monkeypatch.chdir(folder)
    task = gym_task(generator)
    item = draw(task, Split.SEARCH, 1, 1)[0]
    assert make_verifier(task)(item, text) == 0
    assert not list(folder.iterdir())


def test_a_task_may_name_a_second_verifier_which_is_tried_like_the_first() -> None:
    task = TaskSpec("sums", "target", {"kind": "jsonl", "path": "unused"}, second_verifier="numeric")
    assert second_verifier(task) is numeric
    assert make_verifier(task) is exact
    assert second_verifier(TaskSpec("sums", "target", {"kind": "jsonl", "path": "unused"})) is None
    assert junk_paid(task, [SUM]) is None
    said = junk_paid(task, [Item.of("say one", "one"), Item.of("say two", "two")])
    assert said is not None
    assert "the verifier numeric cannot be trusted" in said
    assert "the reference is not right" in said
