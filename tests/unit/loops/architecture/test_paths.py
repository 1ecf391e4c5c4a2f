"""The genome of paths: what a genotype describes, and that its change says the same."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loops.architecture.genome import models_of, template_of
from loops.architecture.paths import PathDefinition, in_words
from state.records import canonical

ROW = PathDefinition(("x", "y"), (3, 2), repeats=2, deepest=6)


@st.composite
def rows(draw: st.DrawFn) -> PathDefinition:
    depths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    block = draw(st.integers(1, 3))
    return PathDefinition(tuple(f"m{place}" for place in range(len(depths))), tuple(depths), draw(st.integers(1, 3)),
                          block, draw(st.integers(block, 12)))


def test_the_layers_stand_end_to_end_and_the_row_is_repeated() -> None:
    once = [((0, 0),), ((0, 1),), ((0, 2),), ((1, 0),), ((1, 1),)]
    assert ROW.places == once * 2
    blocks = PathDefinition(("x", "y"), (3, 2), repeats=1, block=2).places
    assert blocks == [((0, 0), (0, 1)), ((0, 2),), ((1, 0), (1, 1))]


def test_the_templates_own_path_is_its_layers_in_order_without_a_seam() -> None:
    change = ROW.change(ROW.own, {})
    assert change == {"kind": "path", "parents": ["x"], "layers": [[0, 0], [0, 1], [0, 2]], "scales": [1.0] * 3,
                      "places": [0, 1, 2]}


def test_a_seam_is_where_a_layer_does_not_follow_its_own_predecessor() -> None:
    through = [0, 1, 4, 5, 6]                                     # x0 x1 | y1 | x0 x1
    included = [place in through for place in range(10)]
    assert ROW.seams(included) == [4, 5]
    assert ROW.seams([place in (1, 2) for place in range(10)]) == [1]           # not entered from the embeddings
    assert ROW.seams([place in (3, 4) for place in range(10)]) == [3]           # another model's embeddings
    change = ROW.change(included, {4: 0.7, 5: 1.5})
    assert change["layers"] == [[0, 0], [0, 1], [1, 1], [0, 0], [0, 1]]
    assert change["scales"] == [1.0, 1.0, 0.7, 1.5, 1.0]


def test_the_template_is_a_parent_even_where_the_path_uses_none_of_its_layers() -> None:
    change = ROW.change([place in (3, 4) for place in range(10)], {3: 1.0})
    assert change["parents"] == ["x", "y"]
    assert change["layers"] == [[1, 0], [1, 1]]
    assert (template_of(change), models_of(change)) == ("x", ["x", "y"])


@settings(max_examples=200, deadline=None)
@given(rows(), st.data())
def test_a_change_says_what_its_genotype_does(row: PathDefinition, data: st.DataObject) -> None:
    size = len(row.places)
    worth = data.draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))
    included = row.trimmed(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), worth)
    scales = {place: data.draw(st.floats(0.5, 2.0)) for place in row.seams(included)}
    change = json.loads(canonical(row.change(included, scales)))
    assert row.genes(change) == (included, scales)
    assert 1 <= len(change["layers"]) <= row.deepest
    assert len(change["layers"]) == len(change["scales"])
    layers = [(row.models.index(change["parents"][model]), layer) for model, layer in change["layers"]]
    assert layers == [layer for place in change["places"] for layer in row.places[place]]


def test_a_path_in_words_says_every_layer_in_order_and_every_scale() -> None:
    change = {"kind": "path", "parents": ["x", "y"], "places": [],
              "layers": [[0, 0], [0, 1], [1, 1], [1, 2], [0, 1], [0, 1], [0, 2], [1, 0]],
              "scales": [1.0, 1.0, 0.75, 1.0, 1.0, 1.25, 1.0, 1.0]}
    assert in_words(change, str.upper) == [
        "embeddings, final norm, head and tokenizer of X", "layers 0 to 1 of X", "layers 1 to 2 of Y, at scale 0.75",
        "layer 1 of X again", "layers 1 to 2 of X again in part, at scale 1.25", "layer 0 of Y",
    ]


@settings(max_examples=100, deadline=None)
@given(rows(), st.data())
def test_a_path_can_be_read_back_from_its_words(row: PathDefinition, data: st.DataObject) -> None:
    size = len(row.places)
    included = row.trimmed(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), [0.5] * size)
    scales = {place: round(data.draw(st.floats(0.5, 2.0)), 6) for place in row.seams(included)}
    change = row.change(included, scales)
    layers, entered = [], []
    for line in in_words(change, str)[1:]:
        found = re.match(r"layers? (\d+)(?: to (\d+))? of (\S+?)(?: again(?: in part)?)?(?:, at scale (\S+))?$", line)
        assert found
        run = range(int(found[1]), int(found[2] or found[1]) + 1)
        layers += [[change["parents"].index(found[3]), layer] for layer in run]
        entered += [float(found[4] or 1.0), *[1.0] * (len(run) - 1)]
    assert layers == change["layers"]
    assert entered == change["scales"]


def test_what_is_too_deep_loses_its_least_worthy_places_and_nothing_gets_the_worthiest() -> None:
    worth = [0.9, 0.8, 0.7, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.05]
    kept = ROW.trimmed([True] * 10, worth)
    assert [place for place, inside in enumerate(kept) if inside] == [0, 1, 2, 6, 7, 8]
    assert ROW.trimmed([False] * 10, worth).index(True) == 0
    assert sum(ROW.trimmed([False] * 10, worth)) == 1


def test_a_genotype_of_another_definition_is_refused() -> None:
    with pytest.raises(ValueError, match="one scale from"):
        ROW.change([place in (1, 2) for place in range(10)], {})
    with pytest.raises(ValueError, match="one scale from"):
        ROW.change([place in (1, 2) for place in range(10)], {1: 0.0})
    with pytest.raises(ValueError, match="7 layers, it may have 1 to 6"):
        ROW.change([place < 7 for place in range(10)], {3: 1.0, 5: 1.0})
    with pytest.raises(ValueError, match="how many layers"):
        PathDefinition(("x",), (0,))
    with pytest.raises(ValueError, match="at least one layer"):
        PathDefinition(("x",), (3,), deepest=0)
