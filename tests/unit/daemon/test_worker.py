"""What a worker says, without any process."""

import ast
from pathlib import Path

import pytest

from daemon.worker import JOBS, LONGEST_REASON, one_line

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("kind", sorted(JOBS))
def test_every_kind_of_job_names_a_function_that_takes_a_spec_and_a_desk(kind):
    module, name = JOBS[kind].split(":")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert [argument.arg for argument in function.args.args] == ["spec", "desk"]


@pytest.mark.parametrize(("error", "words"), [
    (ValueError("first\nsecond"), "ValueError: first"),
    (ValueError("\n\n  first"), "ValueError: first"),
    (AssertionError(), "AssertionError"),
    (KeyError("weights"), "KeyError: 'weights'"),
])
def test_an_exception_becomes_one_line(error, words):
    assert one_line(error) == words


def test_a_long_reason_is_cut():
    assert len(one_line(ValueError("x" * 10_000))) == LONGEST_REASON
