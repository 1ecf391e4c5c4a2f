"""The part of a model that others are merged into, under the names that it has in all of them.

Where every model is of one build that is the whole model. Where one is a text model and the template a vision-language
model it is the language part, by the text model's names: so it is merged as it would be alone, masks drawn by name
included. Which part that is is the business of `safety.scope`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from safety.scope import ScopeError, scope_of

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Shared:
    """`names` gives each tensor of the template that is merged its common name; `views` the tensors of every model by
    common name, each read when it is asked for.
    """

    names: Mapping[str, str]
    views: Mapping[str, Tensors]


class Part(Tensors):
    """Some tensors of a model by other names."""

    def __init__(self, tensors: Tensors, names: Mapping[str, str]) -> None:
        """`names` are {name here: name in `tensors`}."""
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def shared(template: str, models: Mapping[str, Tensors], outlines: Mapping[str, Tensors] | None = None) -> Shared:
    """What the models share, all of them by digest. Of `outlines`, or else of the models, only shapes are looked at.

    ValueError for a model that is neither alike to the template nor to its language part.
    """
    shapes = {
        digest: {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for digest, tensors in (outlines or models).items()
    }
    scopes = {digest: _scope(shapes[template], shapes[digest], digest) for digest in models}
    names = min((scopes[digest] for digest in sorted(scopes)), key=len)
    views = {
        digest: Part(models[digest], {common: scope[name] for name, common in names.items()})
        for digest, scope in scopes.items()
    }
    return Shared(names, views)


def _scope(whole: Mapping[str, tuple[int, ...]], part: Mapping[str, tuple[int, ...]], digest: str) -> dict[str, str]:
    try:
        return scope_of(whole, part)
    except ScopeError as error:
        raise ValueError(f"model {digest[:12]} does not fit the template: {error}") from error
