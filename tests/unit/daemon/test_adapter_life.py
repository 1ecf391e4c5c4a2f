"""A life whose parents are adapters: checked, begun, searched, built, exported and verified like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from court import InlineRunner
from lora import adapter, edit, taught, whole
from safetensors.torch import load_file, save_file
from zoo import pairs

from daemon.audit import run_audit
from daemon.checkup import run_checkup
from daemon.exporting import export_model
from daemon.garbage import why_kept
from daemon.genesis import Beginnings, begin
from daemon.kinds import artefact_kind
from daemon.places import read_places
from daemon.provenance import ancestry
from daemon.settings import load_settings
from daemon.wiring import loops_of
from loops.cycle import House, run_cycle
from loops.work.build import build, read_tensors
from loops.work.screen import screen
from safety.adapters import CONFIG, WEIGHTS
from safety.bounds import load_bounds
from safety.drift import measure
from safety.layers import depth_of
from safety.preflight import preflight
from safety.yardstick.sealed import seal_tasks
from state.database import Database
from state.errors import UserError
from state.jobbook import JobBook
from state.jobs import Desk, JobSpec
from state.ledger import Ledger
from state.reading import Reading
from state.records import Budget, Channel, Event, Outcome, Verdict
from state.registry import Registry
from state.signed import signed_ledger

pytest_plugins = ("zoo",)
SETTINGS = """\
[models]
start = "models/base"
base = "models/base"
parents = ["adapters/one", "adapters/two"]

[[tasks]]
name = "both"
role = "target"
vault_items = 40
source = { kind = "jsonl", path = "pool.jsonl" }

[[tasks]]
name = "naming"
role = "guard"
guard_items = 8
source = { kind = "bilingual", family = "naming2" }

[architecture]
mean = 0.5
patience = 99
fitness_items = 64
fresh_items = 128
batch_items = 32
score_batch = 32
"""
BOUNDS = "[resources]\nmin_disk_free_gib = 0.0001\n"


@pytest.fixture(scope="module")
def made(zoo: dict[str, Path], task: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an operator has: a base and two adapters over it, each of which learnt one half of the task."""
    root = tmp_path_factory.mktemp("operator")
    shutil.copytree(zoo["base"], root / "models" / "base")
    for name in ("one", "two"):
        taught(zoo["base"], pairs(name)[::2], root / "adapters" / name)
    (root / "adapters" / "two" / "NOTICE").write_text("made by two\n")
    shutil.copy(task["source"]["path"], root / "pool.jsonl")
    (root / "kaizend.toml").write_text(SETTINGS)
    (root / "bounds.toml").write_text(BOUNDS)
    return root


class Life:
    """A life in this process: real jobs, real ledger and registry, no service around them."""

    def __init__(self, root: Path) -> None:
        self.root, self.config = root, root / "kaizend.toml"
        places = read_places(self.config)
        places.state.mkdir(exist_ok=True)
        self.database = Database(places.database)
        self.database.migrate()
        self.registry = Registry(places.state, self.database)
        self.ledger: Ledger = signed_ledger(
            self.database, self.registry, places.signing_key, places.public_key, places.heads_file)
        jobs = {"seal": seal_tasks, "measure": measure, "screen": screen, "build": build}
        self.runner = InlineRunner(self.registry, JobBook(self.database), jobs, kind_of=artefact_kind)

    def begin(self) -> Beginnings:
        settings, bounds = load_settings(self.config), load_bounds(self.root / "bounds.toml")
        return begin(settings, self.root, self.ledger, self.registry, self.runner, bounds, "code")

    def cycles(self, begun: Beginnings, count: int) -> Iterator[Outcome]:
        settings = load_settings(self.config)
        loop = loops_of(
            settings, begun, lambda digest: depth_of(self.registry.path(begun.whole(digest))), lambda digest: (),
        )
        house = House(self.ledger, self.runner, lambda: load_bounds(self.root / "bounds.toml"), "code", 7)
        for ordinal in range(count):
            working = str(self.ledger.channel(Channel.WORKING))
            yield run_cycle(house, loop, None, ordinal, working, working, Budget(1e6, 10**9, 100))

    def reading(self) -> closing[Reading]:
        return closing(Reading(read_places(self.config).database))


@pytest.fixture
def life(made: Path, tmp_path: Path) -> Iterator[Life]:
    shutil.copytree(made, tmp_path / "life")
    life = Life(tmp_path / "life")
    yield life
    life.database.close()


def findings(life: Life, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    run_checkup(life.config, as_json=True)
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["findings"]
    return found


def test_adapters_are_parents_from_the_check_to_the_exported_model(
    life: Life, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *_, said = [found["text"] for found in findings(life, capsys) if found["what"] == "model"]
    assert said.startswith(f"models.parents[1]: {life.root / 'adapters' / 'two'} (mit): LoRA adapter of rank 4 that ")
    assert "changes 14 tensors of the base; its config says that it was made on " in said

    begun = life.begin()
    assert begun.adapters == tuple(sorted(begun.parents)) and begun.base not in begun.parents
    assert life.begin() == begun
    for name, digest in zip(("one", "two"), begun.parents, strict=True):
        assert life.registry.kind(digest) == "adapter"
        assert (life.registry.path(digest) / WEIGHTS).read_bytes() == (
            life.root / "adapters" / name / WEIGHTS).read_bytes()

    for outcome in life.cycles(begun, 30):
        assert outcome.verdict in (Verdict.PROMOTED, Verdict.REJECTED), outcome.reason
        if outcome.verdict is Verdict.PROMOTED:
            break
    result = str(outcome.result)
    assert life.ledger.channel(Channel.WORKING) == result != begun.start
    change = list(life.ledger.rows(event=Event.CLOSED))[-1].change
    folders = {begun.base: life.root / "models" / "base"}
    for name, digest in zip(("one", "two"), begun.parents, strict=True):
        folders[digest] = whole(folders[begun.base], life.root / "adapters" / name, tmp_path / name)
    (tmp_path / "job").mkdir()
    spec = JobSpec("build", {}, {"change": change})
    desk = Desk(tmp_path / "job", {f"model:{digest}": path for digest, path in folders.items()})
    expected = read_tensors(build(spec, desk).outputs["model"])
    found = read_tensors(life.registry.path(result))
    assert all(torch.equal(found[name], expected[name]) for name in found)        # as from PEFT's models of them

    with life.reading() as reading:
        reasons = why_kept(reading)
        assert all(reasons[digest] == "what this life began with" for digest in begun.parents)
        descents = {descent.model: descent for descent in ancestry(reading, result)}
    names = dict(zip(begun.parents, ("one", "two"), strict=True))
    assert all(descents[digest].made == f"as it was given ({names[digest]}): an adapter" for digest in begun.parents)
    assert all(descents[digest].parents == (begun.base,) for digest in begun.parents)
    assert run_audit(life.config, True, None, None, None) == 0

    export_model(life.config, "working", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for digest in begun.parents:
        assert f"- `{digest[:12]}` as it was given ({names[digest]}): an adapter, from `{begun.base[:12]}`" in card
    assert (tmp_path / "out" / "NOTICE").read_text() == "made by two\n"
    bill = json.loads((tmp_path / "out" / "bom.cdx.json").read_text())
    depends = {entry["ref"]: set(entry.get("dependsOn", ())) for entry in bill["dependencies"]}
    assert depends[result] == {*begun.parents, begun.base}
    parts = {part["bom-ref"]: part for part in bill["components"]}
    for digest in begun.parents:
        assert depends[digest] == {begun.base}
        assert parts[digest]["licenses"][0]["license"]["id"] == "MIT"


def test_an_archive_begins_with_the_models_that_its_adapters_make(life: Life, tmp_path: Path) -> None:
    """With m2n2 the founders are scored by themselves: the archive gets models, and working never is an adapter."""
    life.config.write_text(SETTINGS.replace("[architecture]", '[architecture]\nsearch = "m2n2"'))
    begun = life.begin()
    outcomes = list(life.cycles(begun, 4))
    assert all(outcome.verdict in (Verdict.PROMOTED, Verdict.REJECTED) for outcome in outcomes), outcomes
    closed = list(life.ledger.rows(event=Event.CLOSED))
    assert [row.change["parents"] for row in closed[:2]] == [[digest] for digest in begun.parents]
    assert all(row.change["base"] == begun.base for row in closed[:2])
    members = [outcome.lesson["member"] for outcome in outcomes[:2]]
    for name, member in zip(("one", "two"), members, strict=True):
        assert life.registry.kind(member) == "model"
        theirs = read_tensors(whole(life.root / "models" / "base", life.root / "adapters" / name, tmp_path / name))
        ours = read_tensors(life.registry.path(member))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not {row.result for row in closed} & set(begun.parents)


def spoiled(change: Any) -> Any:
    def spoil(folder: Path) -> None:
        held = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
        save_file(change(held), folder / WEIGHTS)

    return spoil


def base_of(adapter: Path) -> Path:
    return adapter.parent.parent / "models" / "base"


def another_vocabulary(folder: Path) -> None:
    body = json.loads((base_of(folder) / "tokenizer.json").read_text())
    body["model"]["vocab"]["more"] = 99
    (folder / "tokenizer.json").write_text(json.dumps(body))
    (folder / "tokenizer_config.json").write_text("{}")


HEAD = "base_model.model.lm_head.weight"
FIRST = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda f: edit(f / CONFIG, peft_type="IA3"), "peft_type is 'IA3': only LORA can be merged"),
    (lambda f: edit(f / CONFIG, init_lora_weights="olora"), "training may have changed the base's own weights"),
    (lambda f: (f / CONFIG).write_text("{"), "adapter_config.json: not valid JSON"),
    (lambda f: edit(f / CONFIG, auto_mapping={"auto_map": "x"}), "adapter_config.json has the key auto_map"),
    (lambda f: (f / WEIGHTS).unlink(), "there is no adapter_model.safetensors beside adapter_config.json"),
    (lambda f: (f / WEIGHTS).write_bytes(b"short"), "truncated or not a safetensors file"),
    (lambda f: (f / "adapter_model.bin").write_bytes(b"x"), "adapter_model.bin can run code when it is loaded"),
    (lambda f: (f / "README.md").unlink(), "licence 'unknown' is not in supply.licences"),
    (spoiled(lambda held: {**held, HEAD: torch.zeros(99, 32)}), "its vocabulary was resized"),
    (spoiled(lambda held: {**held, FIRST: torch.zeros(3, 4)}), "do not fit the model's model.layers.0.mlp.up_proj"),
    (spoiled(lambda held: {name: t.to(torch.float64) for name, t in held.items()}), "model.dtypes"),
    (another_vocabulary, "1 tokens differ: 'more'"),
    (lambda f: shutil.copy(base_of(f) / "model.safetensors", f), "config.json: cannot be read"),
    (lambda f: shutil.copytree(base_of(f), f, dirs_exist_ok=True), "there is an adapter (adapter_config.json) beside"),
])
def test_what_cannot_be_a_parent_is_refused_in_one_line_and_nothing_begins(
    life: Life, spoil: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(life.root / "adapters" / "two")
    with pytest.raises(UserError) as refusal:
        life.begin()
    assert words in str(refusal.value) and str(life.root / "adapters" / "two") in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert life.registry.digests() == [] and life.ledger.head()[0] == 0


def test_a_missing_or_another_base_is_refused_by_name(life: Life) -> None:
    text, one = life.config.read_text(), life.root / "adapters" / "one"
    life.config.write_text(text.replace('base = "models/base"', 'base = "models/gone"'))
    with pytest.raises(UserError, match="models/gone: there is no such model folder"):
        life.begin()
    for key in ("start", "base"):
        life.config.write_text(text.replace(f'{key} = "models/base"', f'{key} = "adapters/one"'))
        with pytest.raises(UserError, match=r"adapters/one: holds an adapter: models\.parents may, over the model of"):
            life.begin()
    life.config.write_text(text.replace('start = "models/base"', 'start = "models/other"'))
    shutil.copytree(life.root / "models" / "base", life.root / "models" / "other")
    edit(one / CONFIG, base_model_name_or_path=str(life.root / "models" / "other"))
    with pytest.raises(UserError, match=r"it was made on .*models/other, not on the base .*models/base"):
        life.begin()
    edit(one / CONFIG, base_model_name_or_path="somebody/some-model")           # a name that leads nowhere here
    assert len(life.begin().adapters) == 2


def test_numbers_that_are_not_finite_are_found_before_the_life_begins(life: Life) -> None:
    spoiled(lambda held: {**held, FIRST: held[FIRST] * torch.inf})(life.root / "adapters" / "two")
    with pytest.raises(UserError, match=r"adapters/two: .*non_finite"):
        life.begin()
    assert life.ledger.latest(Event.GENESIS) is None


def test_embeddings_that_are_the_head_too_are_not_changed_by_an_adapter_alone(life: Life) -> None:
    """Other adapters over such a base are as good as any."""
    base, three = life.root / "models" / "base", life.root / "adapters" / "three"
    held = load_file(base / "model.safetensors")
    del held["lm_head.weight"]
    save_file(held, base / "model.safetensors", metadata={"format": "pt"})
    edit(base / "config.json", tie_word_embeddings=True)
    adapter(base, three, target_modules=["embed_tokens"])
    bounds, adapters = load_bounds(life.root / "bounds.toml"), [life.root / "adapters" / "one", three]
    (problem,) = preflight([base], bounds, adapters, base)
    assert problem.path == three
    assert "it changes model.embed_tokens.weight, and embeddings are the head (tie_word_embeddings)" in str(problem)
