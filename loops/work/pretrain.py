"""Makes the demo's models from nothing: a base and two experts of about 177 thousand parameters each.

They are ordinary Hugging Face folders, so everything downstream treats them like any other model. The base learns a
little of everything, `expert-maths` goes on with maths in language 1, `expert-language` with copying and naming in
language 2; the rows each expert learnt from lie beside them as data. What the rows say is the matter of
`safety.yardstick.bilingual`. Same seed and same number of threads, same bytes.

Rows here and everywhere: token ids of the prompt, ids of the answer, the end token; loss on the answer and the end.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from safety.yardstick import bilingual

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction of it that is done."""

IGNORED: Final = -100


@dataclass(frozen=True, slots=True)
class Course:
    """How one model is trained: AdamW, linear warm-up over 5 % of the steps, then linear decay to zero."""

    kind: str
    rows: int
    steps: int
    batch_rows: int
    learning_rate: float
    weight_decay: float


BASE: Final = Course(kind="base", rows=30_000, steps=350, batch_rows=128, learning_rate=3e-3, weight_decay=0.1)
EXPERTS: Final[dict[str, Course]] = {
    "expert-maths": Course(
        kind="expert_maths", rows=6_000, steps=400, batch_rows=128, learning_rate=1e-3, weight_decay=0.3
    ),
    "expert-language": Course(
        kind="expert_language", rows=6_000, steps=150, batch_rows=128, learning_rate=5e-4, weight_decay=0.1
    ),
}


def make_demo_models(folder: Path, seed: int, threads: int, progress: Progress) -> None:
    """Write base, expert-maths, expert-language and data/{expert_maths,expert_language}.jsonl under `folder`.

    Each data row is {"prompt", "answer"}. `threads` is torch's thread count from here on. Files that exist are
    overwritten. OSError when the folder cannot be written.
    """
    torch.set_num_threads(threads)
    tokenizer = word_tokenizer()
    base = fresh_model(seed)
    train(base, tokenizer, bilingual.corpus(BASE.kind, seed, BASE.rows), BASE, seed, _told(progress, "base"))
    _save(base, tokenizer, folder / "base", "Common ancestor: a little of everything.")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, course in EXPERTS.items():
        rows = bilingual.corpus(course.kind, seed, course.rows)
        lines = (json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows)
        (folder / "data" / f"{course.kind}.jsonl").write_text("".join(lines), encoding="utf-8")
        expert = fresh_model(seed)
        expert.load_state_dict(base.state_dict())
        train(expert, tokenizer, rows, course, seed, _told(progress, name))
        _save(expert, tokenizer, folder / name, f"The base, trained further on data/{course.kind}.jsonl.")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, ids as in `bilingual.VOCABULARY`; adds no special tokens by itself."""
    ids = {word: place for place, word in enumerate(bilingual.VOCABULARY)}
    words = Tokenizer(WordLevel(ids, unk_token=bilingual.UNKNOWN))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=bilingual.PAD,
        eos_token=bilingual.EOS,
        unk_token=bilingual.UNKNOWN,
        model_max_length=64,
    )


def fresh_model(seed: int) -> LlamaForCausalLM:
    """An untrained decoder; torch's global generator is left as it was."""
    config = LlamaConfig(
        vocab_size=len(bilingual.VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=bilingual.VOCABULARY.index(bilingual.EOS),
        pad_token_id=bilingual.VOCABULARY.index(bilingual.PAD),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    _order_numerals(model)
    return model


def encode(tokenizer: PreTrainedTokenizerFast, rows: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both (rows, longest), padded on the right; labels are `IGNORED` outside the answer."""
    prompts = tokenizer([prompt for prompt, _ in rows], add_special_tokens=False)["input_ids"]
    answers = tokenizer([answer for _, answer in rows], add_special_tokens=False)["input_ids"]
    ends = [[*answer, tokenizer.eos_token_id] for answer in answers]
    longest = max(len(prompt) + len(end) for prompt, end in zip(prompts, ends, strict=True))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    for place, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
        ids[place, : len(prompt) + len(end)] = torch.tensor(prompt + end)
        labels[place, len(prompt) : len(prompt) + len(end)] = torch.tensor(end)
    return ids, labels


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[tuple[str, str]],
    course: Course,
    seed: int,
    progress: Callable[[float], None],
) -> None:
    """Train `model` in place. Batches are drawn without replacement, epoch after epoch, in an order from `seed`."""
    ids, labels = encode(tokenizer, rows)
    order = _batches(len(rows), course, seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=course.learning_rate, weight_decay=course.weight_decay, fused=True
    )
    warmup = max(1, course.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warmup, (course.steps - step) / (course.steps - warmup))
    )
    model.train()
    for step, batch in enumerate(order):
        loss = answer_loss(model, ids[batch], labels[batch])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 25 == 0:
            progress(step / course.steps)
    model.eval()
    progress(1.0)


def answer_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the labelled tokens; the head runs on the positions that predict them only."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    wanted = labels[:, 1:]
    asked = wanted != IGNORED
    return cross_entropy(model.lm_head(hidden[asked]), wanted[asked])


@torch.no_grad()
def _order_numerals(model: LlamaForCausalLM) -> None:
    """Start the numerals' vectors near points on circles of many periods, in and out.

    Large models arrive at such a number line by themselves (2502.00873). From random vectors a model this small learns
    sums by heart and misses 7 of 10 unseen pairs of operands; from these it misses about as many as seen ones.
    """
    first = bilingual.VOCABULARY.index("0")
    numbers = torch.arange(bilingual.NUMERALS)[:, None]
    periods = torch.logspace(math.log10(4), math.log10(2 * bilingual.NUMERALS), 16)[None, :]
    angles = 2 * math.pi * numbers / periods
    circles = torch.cat([angles.cos(), angles.sin()], dim=1) * 0.03
    for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
        numerals = weight[first : first + bilingual.NUMERALS]
        numerals.mul_(0.3)
        numerals[:, : circles.shape[1]] += circles


def _batches(rows: int, course: Course, seed: int) -> torch.Tensor:
    """Row numbers, (steps, batch_rows)."""
    generator = torch.Generator().manual_seed(seed)
    needed = course.steps * course.batch_rows
    epochs = [torch.randperm(rows, generator=generator) for _ in range(-(-needed // rows))]
    return torch.cat(epochs)[:needed].view(course.steps, course.batch_rows)


def _told(progress: Progress, name: str) -> Callable[[float], None]:
    return lambda done: progress(name, done)


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, what: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    card = f"---\nlicense: apache-2.0\nlanguage: [en, eo]\n---\n\n# {folder.name}\n\n{what} Made by `kaizend demo`; no "
    (folder / "README.md").write_text(card + "downloaded weights or data.\n", encoding="utf-8")


def main() -> None:
    """`python -m loops.work.pretrain FOLDER --seed N --threads N`, with a line of progress now and then."""
    parser = argparse.ArgumentParser(prog="loops.work.pretrain", description="Makes the demo's models from nothing.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    last = ""

    def told(what: str, done: float) -> None:
        nonlocal last
        line = f"{what} {100 * done:.0f} %"
        if line != last:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        last = line

    make_demo_models(asked.folder, asked.seed, asked.threads, told)


if __name__ == "__main__":
    main()
