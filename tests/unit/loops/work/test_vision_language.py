"""Text models merged into the language part of a small LLaVA: what is merged, what stays, and that it works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import save, tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from loops.architecture.genome import Definition, Operator
from loops.pipeline.recipe import Adapter, AdapterKind, Recipe, Stage
from loops.work.build import build, composed, place, read_tensors
from loops.work.learner import load_learner
from loops.work.train import train
from safety.bounds import Bounds
from safety.preflight import preflight, scope_in_words
from safety.yardstick.items import Item
from safety.yardstick.scoring import (
    encode,
    expected_success,
    generate_texts,
    load_model,
    stored_names,
    teacher_forced,
)
from state.jobs import Desk, JobSpec

WORDS = ["one", "two", "three", "four", "<image>"]
README = "---\nlicense: mit\n---\n"
BODY, HEAD = "language_model.model.", "language_model.lm_head."
IMAGE_TOKENS = 4                                # an image of 16 pixels a side in patches of 8


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LLaVA, its language part as a text model of its own, and two more text models of the same configuration."""
    torch.set_num_threads(1)
    root, tokenizer = tmp_path_factory.mktemp("world"), tiny_tokenizer(WORDS)
    folders = {name: tiny_model(root / name, WORDS, seed=seed) for name, seed in (("text", 1), ("one", 2), ("two", 3))}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16,
            patch_size=8,
        ),
        text_config=LlamaConfig.from_pretrained(folders["text"]), tie_word_embeddings=False,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=IMAGE_TOKENS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        folders["llava"] = save(LlavaForConditionalGeneration(config), tokenizer, root / "llava")
    held = read_tensors(folders["llava"])
    text = {text_name(name): tensor for name, tensor in held.items() if name.startswith((BODY, HEAD))}
    save_file(text, folders["text"] / "model.safetensors", metadata={"format": "pt"})
    for folder in folders.values():
        (folder / "README.md").write_text(README)
    return folders


def text_name(name: str) -> str:
    return name.replace(BODY, "model.", 1) if name.startswith(BODY) else name.removeprefix("language_model.")


def definition(operator: Operator, base: str) -> Definition:
    return Definition(operator, base, ("one", "two"), groups=2, shared=False, seed=5)


def change(operator: Operator, base: str) -> dict[str, Any]:
    found = definition(operator, base)
    return found.change([
        round(low + (high - low) * (0.3 + 0.05 * (i % 5)), 6) for i, (low, high) in enumerate(found.limits())
    ])


def made(operator: Operator, base: str, world: dict[str, Path]) -> dict[str, Tensor]:
    named = {"base": world[base], "one": world["one"], "two": world["two"]}
    return dict(composed(change(operator, "base"), {name: read_tensors(path) for name, path in named.items()}))


@pytest.mark.parametrize("operator", list(Operator))
def test_the_language_part_is_merged_as_the_text_models_alone_and_the_rest_is_kept_to_the_bit(
    world: dict[str, Path], operator: Operator
) -> None:
    whole, alone, before = made(operator, "llava", world), made(operator, "text", world), read_tensors(world["llava"])
    assert whole.keys() == before.keys()
    language = {name for name in whole if name.startswith((BODY, HEAD))}
    assert {text_name(name) for name in language} == alone.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, alone[text_name(name)] if name in language else before[name]), name
    assert any(not torch.equal(whole[name], before[name]) for name in language)


@pytest.fixture(scope="module")
def built(world: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("scratch")
    desk = Desk(scratch, {f"model:{name}": world[name] for name in ("llava", "one", "two")})
    spec = JobSpec("build", {}, {"change": change(Operator.TASK_ARITHMETIC, "llava")})
    return Path(build(spec, desk).outputs["model"])


def test_what_is_built_loads_with_plain_transformers_sees_and_writes(world: dict[str, Path], built: Path) -> None:
    new, old = (AutoModelForImageTextToText.from_pretrained(folder).eval() for folder in (built, world["llava"]))
    for part in ("vision_tower", "multi_modal_projector"):
        after, before = (getattr(model.model, part).state_dict() for model in (new, old))
        assert all(torch.equal(after[name], before[name]) for name in before | after)
    image_token = new.config.image_token_id
    ids = torch.tensor([[3, *[image_token] * IMAGE_TOKENS, 4]])
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 5}
    seen = new.generate(**asked, pixel_values=pixels)
    assert seen.shape[0] == 1 and seen.shape[1] > ids.shape[1]
    logits, others = (new(input_ids=ids, pixel_values=p).logits for p in (pixels, -pixels))
    assert not torch.equal(logits, others)                                   # it looks at the image
    assert not torch.equal(logits, old(input_ids=ids, pixel_values=pixels).logits)


def test_a_candidate_in_memory_is_the_model_that_is_built(world: dict[str, Path], built: Path) -> None:
    shell = load_model(world["llava"], "cpu")
    tensors = {name: read_tensors(world[name]) for name in ("llava", "one", "two")}
    place(change(Operator.TASK_ARITHMETIC, "llava"), tensors, stored_names(shell.model))
    saved = load_model(built, "cpu").model.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in shell.model.state_dict().items())


def test_it_is_scored_on_text_alone_as_a_plain_pass_says(built: Path) -> None:
    scored = load_model(built, "cpu")
    model, tokenizer = scored.model, scored.tokenizer
    items = [Item.of(f"{a} {b}", f"{b} {c}") for a in WORDS[:3] for b in WORDS[:3] for c in WORDS[:3]]
    chances, right = expected_success(model, tokenizer, items, 4), teacher_forced(model, tokenizer, items, 4)
    for item, chance, is_right in zip(items, chances, right, strict=True):
        prompt, answer = encode(tokenizer, item.prompt, item.answer)
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        logs = logits.log_softmax(dim=-1)[range(len(answer)), answer]
        assert float(logs.sum().exp()) == pytest.approx(float(chance), rel=1e-4)
        assert bool(is_right) == (logits.argmax(dim=-1).tolist() == answer)
    assert len(generate_texts(model, tokenizer, items[:5])) == 5


@pytest.mark.parametrize("kind", [AdapterKind.NONE, AdapterKind.LORA])
def test_training_leaves_what_it_sees_with_as_it_was(world: dict[str, Path], tmp_path: Path, kind: AdapterKind) -> None:
    recipe = Recipe(Stage.SFT, learning_rate=0.01, batch=1, steps=1, adapter=Adapter(kind, rank=2, alpha=4.0))
    learner = load_learner(world["llava"], recipe, 0, "cpu")
    for _ in range(2):                                                    # an adapter's first step moves only one half
        ids = torch.tensor([[3, 4, 5, 3]])
        learner.model(input_ids=ids, labels=ids).loss.backward()
        learner.optimizer.step()
    learner.save(tmp_path / "trained")
    before, after = read_tensors(world["llava"]), read_tensors(tmp_path / "trained")
    assert before.keys() == after.keys()
    language = {name for name in before if name.startswith((BODY, HEAD))}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - language)
    assert any(not torch.equal(before[name], after[name]) for name in language)


def test_the_training_job_takes_it_on_text(world: dict[str, Path], tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.mkdir()
    rows = [{"prompt": f"{a} {b}", "answer": a} for a in WORDS[:4] for b in WORDS[:4]]
    (words / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    desk = Desk(tmp_path / "scratch", {"model": world["llava"], "data:words": words})
    desk.folder.mkdir()
    recipe = Recipe(Stage.SFT, learning_rate=0.01, batch=4, steps=4)
    done = train(JobSpec("train", {}, {
        "recipe": recipe.to_json(), "from_step": 0, "to_step": 4, "save_steps": 2, "max_tokens": None,
    }), desk)
    assert done.values["steps"] == 4
    before, after = read_tensors(world["llava"]), read_tensors(Path(done.outputs["model"]))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith((BODY, HEAD)) for name in changed)


def test_check_and_the_card_say_what_is_merged_and_what_is_kept(world: dict[str, Path], built: Path) -> None:
    bounds = Bounds()
    assert preflight([world["llava"]], bounds, [world["one"], world["two"]]) == []
    words = scope_in_words(world["llava"], world["one"])
    assert words.startswith("21 tensors of the language part are merged; kept bit for bit: ")
    assert "vision_tower (" in words and "multi_modal_projector (4 tensors)" in words
    assert words in (built / "README.md").read_text()
    assert scope_in_words(world["text"], world["one"]) == ""


def test_start_and_base_must_be_whole(world: dict[str, Path]) -> None:
    problems = preflight([world["llava"], world["text"]], Bounds(), [world["one"]])
    assert {problem.check for problem in problems} >= {"tensors"}
    assert all(problem.path == world["text"] for problem in problems)


def spoil_shape(folder: Path) -> None:
    shutil.rmtree(folder)
    tiny_model(folder, WORDS, width=48)


def spoil_tokens(folder: Path) -> None:
    body = json.loads((folder / "tokenizer.json").read_text())
    body["model"]["vocab"] = {("five" if word == "four" else word): n for word, n in body["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(body))


def spoil_heads(folder: Path) -> None:
    body = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**body, "num_attention_heads": 4, "head_dim": 8}))


@pytest.mark.parametrize(("spoil", "check", "words"), [
    (spoil_shape, "tensors", ["no language part of", "48"]), (spoil_tokens, "tokenizer", ["1 tokens differ", "'five'"]),
    (spoil_heads, "config", ["head_dim is 8, not 16"]),
])
def test_a_parent_that_does_not_fit_is_refused_in_one_line(
    world: dict[str, Path], tmp_path: Path, spoil: Any, check: str, words: list[str]
) -> None:
    parent = Path(shutil.copytree(world["one"], tmp_path / "parent"))
    spoil(parent)
    (parent / "README.md").write_text(README)
    found = {problem.check: str(problem) for problem in preflight([world["llava"]], Bounds(), [parent])}
    assert all(word in found[check] for word in words), found
    with pytest.raises(ValueError, match="cannot be merged"):
        desk = Desk(tmp_path / "scratch", {
            "model:llava": world["llava"], "model:one": parent, "model:two": world["two"],
        })
        build(JobSpec("build", {}, {"change": change(Operator.TASK_ARITHMETIC, "llava")}), desk)
