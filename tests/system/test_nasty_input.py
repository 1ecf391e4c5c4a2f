"""The nastiest input, given to the real commands: exit 2 and one line, nothing made, nothing waited for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mutations import nested, no_longer_than, snapshot
from spoiled_models import BROKEN, Spoil
from watching import complaint, kaizend

LIMIT_SECONDS = 60.0
MODEL = Path("models") / "expert-language"
RUN, CHECK, BOUNDS = ("run", "--cycles", "1"), ("check",), ("bounds", "check")
SCORE = ("score", str(MODEL))


@pytest.fixture
def nasty(begun: Path, tmp_path: Path) -> Path:
    """A kaizend folder that was never started, with what paths should not lead to beside its files."""
    folder = Path(shutil.copytree(begun, tmp_path / "nasty"))
    os.mkfifo(folder / "pipe")
    (folder / "circle").symlink_to("circle")
    return folder


def config(old: str, new: str) -> Spoil:
    def spoil(folder: Path) -> None:
        text = (folder / "kaizend.toml").read_text()
        assert old in text
        (folder / "kaizend.toml").write_text(text.replace(old, new, 1))
    return spoil


def file(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def instead(name: str, make: Callable[[Path], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)
    return spoil


def refused(folder: Path, words: tuple[str, ...]) -> str:
    """The complaint of a command, after seeing that it had no effect."""
    before = snapshot(folder)
    with no_longer_than(LIMIT_SECONDS):
        done = kaizend(folder, *words)
    assert snapshot(folder) == before
    return complaint(done)


JSONL = 'source = { kind = "bilingual", family = "maths1" }'
FILES: dict[str, tuple[Spoil, str]] = {
    "an argument of a library": (config("seed = 8", "_cli_parse_args = true"), "_cli_parse_args: unknown key"),
    "its own self": (config("seed = 8", "__pydantic_self__ = 1"), "__pydantic_self__: unknown key"),
    "a file of secrets": (config("seed = 8", '_secrets_dir = "models"'), "_secrets_dir: unknown key"),
    "thousands of digits": (config("seed = 8", "seed = " + "9" * 5000), "kaizend.toml: not valid TOML"),
    "a number of 400 digits": (config("seed = 8", "seed = 1" + "0" * 400), "kaizend.toml: seed: "),
    "a negative seed": (config("seed = 8", "seed = -1"), "kaizend.toml: seed: "),
    "no number": (config("patience = 2", "mean = nan"), "architecture.mean: nan"),
    "an endless budget": (config("[service]", "[budget]\nseconds = inf\n[service]"), "budget.seconds: inf"),
    "a search without items": (config("fresh_items = 256", "fresh_items = 0"), "fresh_items is 0"),
    "an unknown operator": (config("patience = 2", 'operators = ["frankenstein"]'), "operators must be some of"),
    "a key of two lines": (config("seed = 8", '"a\\nb\\u001b[2J" = 1'), "'a\\nb\\x1b[2J': unknown key"),
    "a text that is no name": (config("models/base", "models\\u0000base"), "models.base: a text with a null character"),
    "a moment in a task": (config(JSONL, 'source = { kind = "bilingual", family = 2026-01-01 }'), "family"),
    "a list in a task": (config(JSONL, 'source = { kind = "reasoning_gym", generator = [] }'), "generator"),
    "levels of nothing": (config("[service]", "[reward.levels]\nmaths2 = []\n[service]"), "levels.maths2 is empty"),
    "a level of nothing": (config("[service]", "[reward.levels]\nmaths2 = [{}]\n[service]"), "level 1 says nothing"),
    "levels that are none": (config("[service]", "[reward.levels]\nmaths2 = [3]\n[service]"), "reward.levels.maths2.0"),
    "levels of no target": (config("[service]", "[reward.levels]\nm = [{ a = 1 }]\n[service]"), "no target of that"),
    "levels of what has none": (
        config("[service]", "[reward.levels]\nmaths2 = [{ a = 1 }]\n[service]"), "kind bilingual has no levels"),
    "a share for no source": (
        config("[pipeline.grpo]", "[pipeline.sft.mixture]\nmaths = 0.5\nmats = 0.5\n[pipeline.grpo]"),
        "pipeline.sft.mixture: there is no data.mats, only language, maths"),
    "shares of nothing": (
        config("[pipeline.grpo]", "[pipeline.sft.mixture]\nmaths = 0.0\n[pipeline.grpo]"), "no source has a share"),
    "a stage twice": (config("[pipeline]", '[pipeline]\nstages = ["sft", "grpo", "sft"]'), "name each stage once"),
    "endless items": (config("vault_items = 2000", "vault_items = 1" + "0" * 18), "vault_items is 1000"),
    "a task file that is a pipe": (config(JSONL, 'source = { kind = "jsonl", path = "pipe" }'), "not a regular file"),
    "a task file in a circle": (config(JSONL, 'source = { kind = "jsonl", path = "circle" }'), "circle"),
    "a task file without end": (config(JSONL, 'source = { kind = "jsonl", path = "/dev/zero" }'), "not a regular file"),
    "a name too long": (config(JSONL, f'source = {{ kind = "jsonl", path = "{"x" * 300}" }}'), "too long"),
    "bounds from a pipe": (config("[service]", '[service]\nbounds = "pipe"'), "pipe: cannot be read: not a regular"),
    "bounds without end": (config("[service]", '[service]\nbounds = "/dev/zero"'), "/dev/zero: cannot be read"),
    "binary": (file("kaizend.toml", b"\xff\xfe\x00"), "kaizend.toml: not valid TOML: not UTF-8"),
    "lists in lists": (file("kaizend.toml", nested(60_000)), "kaizend.toml: not valid TOML: nested too deep"),
    "a key of keys": (file("kaizend.toml", b"a." * 30_000 + b"a = 1\n"), "nested too deep"),
    "three megabytes": (file("kaizend.toml", b"#" * 3_000_000), "larger than"),
    "a circle": (instead("kaizend.toml", lambda place: place.symlink_to(place.name)), "no kaizend.toml"),
    "a pipe": (instead("kaizend.toml", os.mkfifo), "no kaizend.toml"),
}
LIMITS: dict[str, tuple[Spoil, str]] = {
    "digits": (file("bounds.toml", b"[model]\nmax_layers = 1" + b"0" * 400), "key 'max_layers' in section [model]"),
    "thousands of digits": (file("bounds.toml", b"[model]\nmax_layers = " + b"9" * 5000), "not valid TOML"),
    "a level of nothing": (file("bounds.toml", b"[gate]\nalpha = 5e-324"), "key 'alpha' in section [gate]"),
    "a stop file elsewhere": (file("bounds.toml", b'[breaker]\nstop_file = "../../tmp/STOP"'), "'stop_file'"),
    "a stop file without a name": (file("bounds.toml", b'[breaker]\nstop_file = ""'), "'stop_file'"),
    "a stop file too long": (file("bounds.toml", b'[breaker]\nstop_file = "' + b"x" * 300 + b'"'), "'stop_file'"),
    "deep": (file("bounds.toml", nested(60_000)), "nested too deep"),
    "a pipe": (instead("bounds.toml", os.mkfifo), "bounds.toml: cannot be read: not a regular file"),
    "a key of two lines": (file("bounds.toml", b'"a\\nb" = 1'), "unknown key 'a\\nb'"),
}
MODELS = (
    "config.json is a pipe", "config.json is a device", "config nested", "config.json is a circle of links",
    "model.safetensors is a pipe", "model.safetensors is a folder", "tokenizer.json is a hole",
    "length 18446744073709551615", "header nested", "header of digits", "a tensor twice", "overlapping",
    "offsets below zero", "shape that overflows", "index leads out", "index and single file", "weights elsewhere",
    "an adapter", "auto_map inside", "auto_map in another processor", "kernels from elsewhere", "tokens of lists",
    "half a character", "licence of a controller",
)


@pytest.mark.parametrize("words", [RUN, CHECK], ids=["run", "check"])
@pytest.mark.parametrize("how", FILES)
def test_a_nasty_configuration(nasty: Path, how: str, words: tuple[str, ...]) -> None:
    spoil, said = FILES[how]
    spoil(nasty)
    if words == CHECK and ("task file" in how or how == "a name too long"):
        report(nasty, said)
    else:
        assert said in refused(nasty, words)


@pytest.mark.parametrize("words", [RUN, BOUNDS], ids=["run", "bounds"])
@pytest.mark.parametrize("how", LIMITS)
def test_nasty_bounds(nasty: Path, how: str, words: tuple[str, ...]) -> None:
    spoil, said = LIMITS[how]
    spoil(nasty)
    assert said in refused(nasty, words)


@pytest.mark.parametrize("how", MODELS)
def test_a_nasty_model_folder(nasty: Path, how: str) -> None:
    BROKEN[how](nasty / MODEL)
    assert str(MODEL) in refused(nasty, RUN)
    assert str(MODEL) in refused(nasty, SCORE)
    report(nasty, str(MODEL))


def report(folder: Path, said: str) -> None:
    """`check` lists what it found, a line each, and exits 2."""
    before = snapshot(folder)
    with no_longer_than(LIMIT_SECONDS):
        done = kaizend(folder, "check", "--json")
    assert snapshot(folder) == before
    findings = json.loads(done.stdout)["findings"]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == len(findings)
    assert any(said in finding["text"] and not finding["ok"] for finding in findings)
