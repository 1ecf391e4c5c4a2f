"""The genome of the data-flow space: a path through the layers of several models (Akiba et al., arXiv 2403.13187).

The layers of all models stand end to end, and that row stands `repeats` times in a row; a genotype says of each place
whether the path goes through it, in that order, and by how much the residual stream is scaled at each seam. A seam is
where a layer is entered from another one than stood before it in its own model; everywhere else the scale is 1, so a
model's own path is that model. Nothing here touches tensors. Invariant: `genes(change(g)) == g` for every genotype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from state.records import JsonObject

PATH = "path"
SCALE_LIMITS = (0.5, 2.0)       # of a seam; folded into weights a scale must be above 0 (see loops.work.paths)
Layer = tuple[int, int]
"""A model's place in the pool, and one of its layers."""


@dataclass(frozen=True, slots=True)
class PathDefinition:
    """What may vary in a path through `models`, of `depths` layers each.

    The first model is the template: it gives embeddings, final norm, head, tokenizer and config. Layers are taken or
    left `block` at a time; a path has at most `deepest` of them.
    """

    models: tuple[str, ...]
    depths: tuple[int, ...]
    repeats: int = 2
    block: int = 1
    deepest: int = 1_000

    def __post_init__(self) -> None:
        if not self.models or len(self.models) != len(self.depths) or min(self.depths) < 1:
            raise ValueError("a path needs at least one model, and how many layers each of them has")
        if min(self.repeats, self.block) < 1 or self.deepest < self.block:
            raise ValueError("a path needs repeats, blocks and a depth of at least one layer")

    @property
    def places(self) -> list[tuple[Layer, ...]]:
        """The layers at each place of the row: T = M r of them where a block is one layer."""
        row = [
            tuple((model, layer) for layer in range(start, min(start + self.block, depth)))
            for model, depth in enumerate(self.depths) for start in range(0, depth, self.block)
        ]
        return row * self.repeats

    @property
    def own(self) -> list[bool]:
        """The template's own path: each of its layers once."""
        places = self.places
        once = len(places) // self.repeats
        return [place < once and layers[0][0] == 0 for place, layers in enumerate(places)]

    def trimmed(self, included: Sequence[bool], worth: Sequence[float]) -> list[bool]:
        """A genotype that can be built: one that is too deep loses the places of least worth, an empty one gets the
        worthiest.
        """
        places, kept = self.places, list(included)
        order = sorted(range(len(places)), key=lambda place: (worth[place], place))
        depth = sum(len(layers) for layers, inside in zip(places, kept, strict=True) if inside)
        for place in order:
            if depth > self.deepest and kept[place]:
                kept[place] = False
                depth -= len(places[place])
        if not any(kept):
            kept[order[-1]] = True
        return kept

    def seams(self, included: Sequence[bool]) -> list[int]:
        """The included places that are entered by a seam; the embeddings stand before the template's first layer."""
        found, before = [], (0, -1)
        for place, (layers, inside) in enumerate(zip(self.places, included, strict=True)):
            if inside:
                found += [place] if layers[0] != (before[0], before[1] + 1) else []
                before = layers[-1]
        return found

    def change(self, included: Sequence[bool], scales: Mapping[int, float]) -> JsonObject:
        """The path as JSON: parents are the template and the models it goes through, layers [parent, layer] in order.

        `scales` has one scale for each seam, by place. ValueError for a genotype that is not one of this definition.
        """
        places, seams = self.places, self.seams(included)
        low, high = SCALE_LIMITS
        if scales.keys() != set(seams) or not all(low <= scale <= high for scale in scales.values()):
            raise ValueError(f"a path needs one scale from {low} to {high} for each of its seams")
        through = [place for place, inside in enumerate(included) if inside]
        layers = [layer for place in through for layer in places[place]]
        if not 1 <= len(layers) <= self.deepest:
            raise ValueError(f"the path has {len(layers)} layers, it may have 1 to {self.deepest}")
        used = sorted({0, *(model for model, _ in layers)})
        return {
            "kind": PATH, "parents": [self.models[model] for model in used],
            "layers": [[used.index(model), layer] for model, layer in layers],
            "scales": [
                scales[place] if start == 0 and place in scales else 1.0
                for place in through for start in range(len(places[place]))
            ],
            "places": through,
        }

    def genes(self, change: JsonObject) -> tuple[list[bool], dict[int, float]]:
        """The genotype of a change of this definition."""
        through = set(change["places"])
        included = [place in through for place in range(len(self.places))]
        first = dict(zip(change["places"], _starts(len(self.places[place]) for place in change["places"]), strict=True))
        return included, {place: change["scales"][first[place]] for place in self.seams(included)}


def in_words(change: JsonObject, name: Callable[[str], str]) -> list[str]:
    """Everything that a path goes through, in order, a line each; `name` tells what a model is called.

    A line is a stretch of layers as they follow each other in their model, and the scale of the residual stream on
    entering it where that is not 1.
    """
    models = [name(digest) for digest in change["parents"]]
    lines, met = [f"embeddings, final norm, head and tokenizer of {models[0]}"], set[Layer]()
    for model, first, last, scale in _stretches(change):
        stretch = {(model, layer) for layer in range(first, last + 1)}
        layers = f"layer {first}" if first == last else f"layers {first} to {last}"
        again = " again" if stretch <= met else " again in part" if stretch & met else ""
        lines.append(f"{layers} of {models[model]}{again}" + (f", at scale {scale}" if scale != 1.0 else ""))
        met |= stretch
    return lines


def _stretches(change: JsonObject) -> Iterator[tuple[int, int, int, float]]:
    """(model, first layer, last layer, scale on entering) of each run of layers that no seam divides."""
    found: list[tuple[int, int, int, float]] = []
    for (model, layer), scale in zip(change["layers"], change["scales"], strict=True):
        if found and found[-1][0] == model and found[-1][2] == layer - 1 and scale == 1.0:
            found[-1] = (model, found[-1][1], layer, found[-1][3])
        else:
            found.append((model, layer, layer, scale))
    return iter(found)


def _starts(lengths: Iterator[int]) -> Iterator[int]:
    """Where each of these stretches begins when they stand end to end."""
    start = 0
    for length in lengths:
        yield start
        start += length
