"""A sound model folder, spoiled: what can be wrong with its files, their headers, their JSON and their kinds.

Each way is a function that changes the folder; those in BROKEN must be refused, what HARMLESS does must not be. Drawn
through hypothesis where a choice is open.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from mutations import WHOLES, values

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
SOMETIMES = ("tokenizer_config.json", "generation_config.json", INDEX)
NEEDED = ("config.json", "tokenizer.json", WEIGHTS)

Draw = st.DrawFn
Spoil = Callable[[Path], object]
Change = Callable[[dict[str, Any]], object]


def read_header(file: Path) -> tuple[dict[str, Any], bytes]:
    body = file.read_bytes()
    length = struct.unpack("<Q", body[:8])[0]
    return json.loads(body[8 : 8 + length]), body[8 + length :]


def write_header(file: Path, text: bytes, data: bytes, length: int | None = None) -> None:
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def header(change: Change) -> Spoil:
    def spoil(folder: Path) -> None:
        body, data = read_header(folder / WEIGHTS)
        change(body)
        write_header(folder / WEIGHTS, json.dumps(body).encode(), data)
    return spoil


def raw_header(change: Callable[[bytes, bytes], tuple[bytes, bytes]]) -> Spoil:
    def spoil(folder: Path) -> None:
        body, data = read_header(folder / WEIGHTS)
        write_header(folder / WEIGHTS, *change(json.dumps(body).encode(), data))
    return spoil


def length(number: int) -> Spoil:
    def spoil(folder: Path) -> None:
        body, data = read_header(folder / WEIGHTS)
        write_header(folder / WEIGHTS, json.dumps(body).encode(), data, number)
    return spoil


def tensor(**keys: Any) -> Spoil:
    """The first tensor's entry with other values; a value that is a function gets the old one."""
    def change(body: dict[str, Any]) -> None:
        entry = body[min(name for name in body if name != "__metadata__")]
        entry.update({key: value(entry[key]) if callable(value) else value for key, value in keys.items()})
    return header(change)


def edit(name: str, **keys: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / name
        body = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**body, **keys}))
    return spoil


def text(name: str, content: str | bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def instead(name: str, make: Callable[[Path], object]) -> Spoil:
    """Something else by the name of a file."""
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
    return spoil


def circle(place: Path) -> None:
    place.symlink_to(place.name)


def endless(place: Path) -> None:
    place.symlink_to("/dev/zero")


def hole(place: Path) -> None:
    """A file of two tebibytes that takes no room."""
    with place.open("wb") as file:
        file.truncate(2**41)


KINDS = {"a pipe": os.mkfifo, "a circle of links": circle, "a device": endless, "a folder": Path.mkdir, "a hole": hole}


def overlapping(body: dict[str, Any]) -> None:
    first, second = sorted(name for name in body if name != "__metadata__")[:2]
    body[second] = body[first]


def twice(text_: bytes, data: bytes) -> tuple[bytes, bytes]:
    """The same header naming its first tensor once more: parsers differ in which one they take."""
    name, entry = next(iter(json.loads(text_).items()))
    return text_[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}}}".encode(), data


def index(weight_map: Any) -> Spoil:
    return text(INDEX, json.dumps({"weight_map": weight_map}))


def two_models(folder: Path) -> None:
    """An index that names one file, and the file that libraries prefer to any index."""
    (folder / "shard.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
    body, _ = read_header(folder / WEIGHTS)
    index({name: "shard.safetensors" for name in body if name != "__metadata__"})(folder)


def out_of_the_folder(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
    index({"model.norm.weight": "../outside.safetensors"})(folder)


def all_but(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


REMOTE = {"AutoModelForCausalLM": "evil.Model"}
BROKEN: dict[str, Spoil] = {
    **{f"{name} is {kind}": instead(name, make) for name in NEEDED for kind, make in KINDS.items()},
    **{f"{name} is {kind}": instead(name, KINDS[kind]) for name in SOMETIMES
       for kind in ("a circle of links", "a folder", "a pipe")},
    **{f"there is no {name}": all_but(name) for name in ("config.json", WEIGHTS, "README.md")},
    **{f"length {number}": length(number) for number in (0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1)},
    "no weights": text(WEIGHTS, b""),
    "seven bytes": text(WEIGHTS, b"1234567"),
    "header of binary": raw_header(lambda text_, data: (b"\xff" * len(text_), data)),
    "header without end": raw_header(lambda text_, data: (text_[:-1] + b" ", data)),
    "header is a list": raw_header(lambda text_, data: (b"[" + text_ + b"]", data)),
    "header after a space": raw_header(lambda text_, data: (b" " + text_, data)),
    "header nested": raw_header(lambda text_, data: (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, data)),
    "header of digits": raw_header(lambda text_, data: (b"9" * 20_000, data)),
    "a tensor twice": raw_header(twice),
    "bytes at the end": raw_header(lambda text_, data: (text_, data + b"\0")),
    "bytes missing": raw_header(lambda text_, data: (text_, data[:-1])),
    "overlapping": header(overlapping),
    "metadata of numbers": header(lambda body: body.update(__metadata__={"format": 3})),
    "metadata as an empty list": header(lambda body: body.update(__metadata__=[])),
    "metadata as an empty text": header(lambda body: body.update(__metadata__="")),
    "an entry is a number": header(lambda body: body.update(more=3)),
    "a gap": tensor(data_offsets=lambda place: [place[0] + 4, place[1]]),
    "offsets backwards": tensor(data_offsets=lambda place: place[::-1]),
    "offsets below zero": tensor(data_offsets=[-4, 0]),
    "offsets of floats": tensor(data_offsets=lambda place: [float(place[0]), float(place[1])]),
    "one offset": tensor(data_offsets=[0]),
    "no offsets": tensor(data_offsets=None),
    "offsets beyond": tensor(data_offsets=lambda place: [place[0], 2**62]),
    "huge offsets": tensor(data_offsets=[0, 10**400]),
    "shape of another size": tensor(shape=lambda shape: [*shape, 2]),
    "shape below zero": tensor(shape=lambda shape: [-side for side in shape] + [-1] * (len(shape) + 1)),
    "shape of texts": tensor(shape=lambda shape: list(map(str, shape))),
    "shape of floats": tensor(shape=lambda shape: list(map(float, shape))),
    "shape that overflows": tensor(shape=[2**63, 2**63]),
    "dtype of another size": tensor(dtype="F64"),
    "dtype unknown": tensor(dtype="F33"),
    "dtype a list": tensor(dtype=["F32"]),
    "dtype is null": tensor(dtype=None),
    "index of nothing": text(INDEX, b""),
    "index without a map": text(INDEX, b"{}"),
    "index is a list": index([]),
    "index of numbers": index({"a": 1}),
    "index names a folder": index({"a": "."}),
    "index names what is missing": index({"a": "gone.safetensors"}),
    "index leads out": out_of_the_folder,
    "index with a null character": index({"a": "a\0b.safetensors"}),
    "index of a tensor in no file": index({"nowhere": WEIGHTS}),
    "index and single file": two_models,
    "weights by another name": lambda folder: (folder / WEIGHTS).rename(folder / "weights.safetensors"),
    "weights elsewhere": edit("config.json", transformers_weights="other.safetensors"),
    "an adapter": text("adapter_config.json", json.dumps({"base_model_name_or_path": "/somewhere/else"})),
    "pickles": text("pytorch_model.bin", b"\x80\x04."),
    "a key twice": text("config.json", '{"model_type": "llama", "model_type": "llama", "auto_map": {}, "auto_map": 1}'),
    "config of nothing": text("config.json", ""),
    "config without a type": text("config.json", "{}"),
    "config is a list": text("config.json", "[]"),
    "config of digits": text("config.json", '{"model_type": "llama", "num_hidden_layers": 1' + "0" * 5000 + "}"),
    "config nested": text("config.json", "[" * 100_000),
    "config nested less": text("config.json", '{"model_type": "llama", "x": ' + "[" * 90 + "]" * 90 + "}"),
    "config of binary": text("config.json", b"\xff\xfe\x00"),
    "too many layers": edit("config.json", num_hidden_layers=10**30),
    "auto_map in the config": edit("config.json", auto_map=REMOTE),
    "auto_map of nothing": edit("config.json", auto_map=None),
    "auto_map inside": edit("config.json", text_config={"deep": [{"auto_map": REMOTE}]}),
    "auto_map in the tokenizer": edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}),
    "auto_map in generation": edit("generation_config.json", auto_map=REMOTE),
    "auto_map in a processor": edit("preprocessor_config.json", auto_map=REMOTE),
    "auto_map in another processor": edit("processor_config.json", image_processor={"auto_map": REMOTE}),
    "custom pipelines": edit("config.json", custom_pipelines={"text-generation": {"impl": "evil.Pipe"}}),
    "kernels from elsewhere": edit("config.json", _attn_implementation="someone/kernel"),
    "kernels by part": edit("config.json", attn_implementation={"text_config": "someone/kernel@main"}),
    "experts from elsewhere": edit("config.json", _experts_implementation="someone/kernel"),
    "tokens of lists": text("tokenizer.json", json.dumps({"model": {"vocab": [[["a"], 0]]}, "added_tokens": []})),
    "tokens of texts": text("tokenizer.json", json.dumps({"model": {"vocab": {"a": "b"}}})),
    "vocabulary is a number": text("tokenizer.json", json.dumps({"model": {"vocab": 3}})),
    "model is a text": text("tokenizer.json", json.dumps({"model": "x"})),
    "added tokens of texts": text("tokenizer.json", json.dumps({"model": {"vocab": {}}, "added_tokens": ["a"]})),
    "tokenizer of binary": text("tokenizer.json", b"\x80\x81"),
    "licence of a controller": text("README.md", "---\nlicense: \x1b]0;pwned\x07\n---\n"),
    "no licence": text("README.md", b"\xff" * 1000),
    "licence is a pipe": instead("README.md", os.mkfifo),
    "half a character": edit("config.json", model_type="llama\ud800", num_hidden_layers=10**9),
}
HARMLESS: dict[str, Spoil] = {
    "padded header": raw_header(lambda text_, data: (text_ + b" " * 64, data)),
    "a note": text("notes.txt", "anything"),
    "a template": text("training_args.bin", b"\x80\x04."),
    "an empty tensor's worth of metadata": header(lambda body: body.update(__metadata__={"format": "pt", "x": "y"})),
    "metadata of nothing": header(lambda body: body.update(__metadata__=None)),
    "known attention": edit("config.json", _attn_implementation="sdpa"),
}


@st.composite
def chosen(draw: Draw) -> tuple[str, Spoil, bool]:
    """(what it is, how to do it, whether it must be refused)."""
    kind = draw(st.sampled_from(["broken", "broken", "key", "key", "header", "header", "bytes", "whole"]))
    if kind == "broken":
        name = draw(st.sampled_from(sorted(BROKEN)))
        return name, BROKEN[name], True
    if kind == "key":
        return spoiled_key(draw)
    if kind == "header":
        return spoiled_entry(draw)
    file = draw(st.sampled_from([*JSON_FILES, WEIGHTS, "README.md"]))
    if kind == "whole":
        content = draw(st.sampled_from(WHOLES))
        return f"{file} is {content[:20]!r}", text(file, content), False
    place, length_, fresh = draw(st.floats(0, 1)), draw(st.integers(0, 40)), draw(st.binary(max_size=8))
    front = draw(st.booleans())                       # in weights: rather in the header than in what nobody looks at

    def spoil(folder: Path) -> None:
        body = (folder / file).read_bytes()
        at = int(place * (min(len(body), 600) if front else len(body)))
        (folder / file).write_bytes(body[:at] + fresh + body[at + length_ :])
    return f"bytes of {file}", spoil, False


def spoiled_key(draw: Draw) -> tuple[str, Spoil, bool]:
    file, value, seed = draw(st.sampled_from(JSON_FILES)), draw(values), draw(st.integers(0, 10**6))
    how = draw(st.sampled_from(["set", "remove", "inside"]))

    def spoil(folder: Path) -> None:
        body = json.loads((folder / file).read_text()) if (folder / file).exists() else {"x": 1}
        outer, key = body, sorted(body)[seed % len(body)]
        if how == "inside" and isinstance(body[key], dict) and body[key]:
            outer = body[key]
            key = sorted(outer)[seed % len(outer)]
        if how == "remove":
            del outer[key]
        else:
            outer[key] = value
        (folder / file).write_text(json.dumps(body, default=str))
    return f"{how} a key of {file}", spoil, False


def spoiled_entry(draw: Draw) -> tuple[str, Spoil, bool]:
    seed, key = draw(st.integers(0, 10**6)), draw(st.sampled_from(["dtype", "shape", "data_offsets", ""]))
    number = st.integers(-8, 2**20) | st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64])
    formats = st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "F8_E4M3"])
    value = draw(values | st.lists(number, max_size=4) | formats)

    def change(body: dict[str, Any]) -> None:
        names = sorted(body)
        if key and isinstance(body[names[seed % len(names)]], dict):
            body[names[seed % len(names)]][key] = value
        else:
            body[names[seed % len(names)]] = value

    def spoil(folder: Path) -> None:
        body, data = read_header(folder / WEIGHTS)
        change(body)
        write_header(folder / WEIGHTS, json.dumps(body, default=str).encode(), data)
    return f"{key or 'entry'} of a tensor is {value!r}", spoil, False
