"""Which tensors of a model another model can be merged into: all of them, or the language part of a larger model.

A text model's tensors stand in a vision-language model under another prefix: `model.layers.0...` as
`language_model.model.layers.0...` or `model.language_model.layers.0...`. Which one it is is found by names and shapes
alone. Standard library only. Invariant: a scope is whole: every tensor of the text model is in it, and so is every
tensor of the larger model that lies under the prefix, its output head included.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

Shapes = Mapping[str, Sequence[int]]
HEAD: Final = re.compile(r"(?:^|\.)lm_head\.")


class ScopeError(Exception):
    """The one model is no part of the other; one line that names a tensor."""


def scope_of(whole: Shapes, part: Shapes) -> dict[str, str]:
    """{name in `whole`: name in `part`} of the tensors that they share: all by their own names where names and shapes
    are the same, else the language part of `whole`. Raises ScopeError.
    """
    if whole.keys() == part.keys():
        return _own(whole, part)
    root = Counter(name.split(".")[0] for name in part).most_common(1)[0][0] + "." if part else ""
    body = {name: name.removeprefix(root) for name in part if name.startswith(root)}
    prefix = _prefix(whole, part, body)
    scope = {prefix + inner: name for name, inner in body.items()}
    for name in part.keys() - body.keys():
        places = [other for other in whole if other == name or other.endswith(f".{name}")]
        if len(places) != 1:
            raise ScopeError(f"its tensor {name!r} has {len(places)} places there")
        scope[places[0]] = name
    _same_shapes(whole, part, scope)
    left = sorted(name for name in whole.keys() - scope.keys() if name.startswith(prefix) or HEAD.search(name))
    if left:
        raise ScopeError(f"it has nothing for the tensor {left[0]!r} of the language part")
    return scope


def kept(whole: Shapes, scope: Mapping[str, str]) -> dict[str, int]:
    """How many tensors stay as they are, by the name of the module above all that a scope covers."""
    return dict(sorted(Counter(_module(name) for name in whole.keys() - scope.keys()).items()))


def _module(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "model" else parts[0]


def _own(whole: Shapes, part: Shapes) -> dict[str, str]:
    scope = {name: name for name in whole}
    _same_shapes(whole, part, scope)
    return scope


def _prefix(whole: Shapes, part: Shapes, body: Mapping[str, str]) -> str:
    """The one prefix under which every tensor of the body stands in the larger model."""
    if not body:
        raise ScopeError("it has no tensors")
    sought = min(body.values())
    places = [name.removesuffix(sought) for name in whole if name.endswith(f".{sought}")]
    found = [place for place in places if all(place + inner in whole for inner in body.values())]
    if len(found) > 1:                                   # towers of the same build: only shapes can tell them apart
        found = [
            place for place in found
            if all(tuple(whole[place + inner]) == tuple(part[name]) for name, inner in body.items())
        ]
    if len(found) != 1:
        raise ScopeError(f"its tensors stand under {'no' if not found else 'more than one'} prefix there")
    return found[0]


def _same_shapes(whole: Shapes, part: Shapes, scope: Mapping[str, str]) -> None:
    for name, inner in sorted(scope.items()):
        if tuple(whole[name]) != tuple(part[inner]):
            raise ScopeError(f"tensor {inner!r} is {_shape(part[inner])}, {name!r} there is {_shape(whole[name])}")


def _shape(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides)) or "scalar"
