"""The bill of materials of an exported model is valid CycloneDX and says what the ledger says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from daemon.bill_of_materials import bill_of_materials
from daemon.model_card import model_card
from daemon.provenance import Descent, Provenance
from safety.licences import Licence, Obligations, licences_in
from state.records import JsonObject, Row, Verdict

MODEL, MERGED, ONE, TWO, DATA = (letter * 64 for letter in "abcde")
EVIDENCE = {
    "k": 2, "alpha": 0.05, "alpha_k": 0.003, "e": 412.7, "threshold": 341.2, "n": 1200,
    "tasks": {"maths": {"n": 1200, "new": 0.31, "old": 0.27}, "language": {"n": 300, "new": 0.9, "old": 0.91}},
    "guards": {"language": {"e": 24.5, "margin": 0.03, "n": 300, "passed": True}},
}
LICENCES = {MODEL: [Licence("apache-2.0"), Licence("llama3.2"), Licence("other:own", "https://example.org/own")],
            ONE: [Licence("odc-by")], TWO: [Licence("other:own", "LICENSE")]}
FILES = {"model.safetensors": "1" * 64, "README.md": "2" * 64}


def row(id: int, change: JsonObject, **more: Any) -> Row:
    body = {
        "id": id, "time": f"2026-11-22T13:40:{id:02}.5Z", "event": "closed", "cycle": id, "parent": None,
        "loop": "architecture", "change": change, "verdict": Verdict.PROMOTED, "reason": "better", "base": ONE,
        "result": MODEL, "evidence": {}, "cost": {}, "actor": "loop", "prev": "0" * 64, "hash": f"{id:064}",
    }
    return Row(**{**body, **more})


@pytest.fixture
def history() -> Provenance:
    """A model trained from a merge of two, and released."""
    recipe = {"recipe": {"stage": "sft", "learning_rate": 1e-4, "mixture": {"words": 1.0}}, "to_step": 8}
    merge = {"kind": "merge", "operator": "linear", "parents": [ONE, TWO], "weights": [[[0.5]], [[0.5]]]}
    lineage = (
        Descent(MODEL, row(5, recipe), (MERGED,), ("words",)), Descent(MERGED, row(3, merge), (ONE, TWO), ()),
        Descent(ONE, None, (), (), given="expert-one"), Descent(TWO, None, (), ()),
    )
    released = row(9, {}, event="release", evidence=EVIDENCE)
    return Provenance(lineage, (released,), {"words": DATA, "unused": "f" * 64}, row(1, {}, event="genesis"))


def bill(history: Provenance) -> JsonObject:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    return bill_of_materials(history, FILES, config, LICENCES, {DATA: {"words.jsonl": "3" * 64}})


@pytest.mark.parametrize("released", [True, False])
def test_it_is_valid_by_the_schema_and_by_the_library(history: Provenance, released: bool) -> None:
    body = bill(history if released else replace(history, releases=()))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(body)) is None
    wrong = body | {"metadata": {"component": body["metadata"]["component"] | {"modelCard": {"task": "any"}}}}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(wrong)) is not None
    again = Bom.from_json(body)                                                # type: ignore[attr-defined]
    assert {str(component.bom_ref.value) for component in again.components} == {MERGED, ONE, TWO, DATA}


def test_the_same_row_gives_the_same_bytes_and_another_row_another_serial_number(history: Provenance) -> None:
    assert json.dumps(bill(history)) == json.dumps(bill(history))
    assert bill(history)["metadata"]["timestamp"].startswith("2026-11-22T13:40:09.5")
    other = replace(history, releases=(replace(history.releases[0], hash="9" * 64),))
    assert bill(other)["serialNumber"] != bill(history)["serialNumber"]


def test_it_names_parents_data_files_licences_and_what_came_from_what(history: Provenance) -> None:
    body = bill(history)
    model, parts = body["metadata"]["component"], {part["bom-ref"]: part for part in body["components"]}
    assert {part["name"]: part["hashes"][0]["content"] for part in model["components"]} == FILES
    assert model["hashes"] == [{"alg": "SHA-256", "content": MODEL}]
    named = [entry["license"] for entry in model["licenses"]]
    assert sorted(licence.get("id", "") or licence["name"] for licence in named) == ["Apache-2.0", "llama3.2", "own"]
    assert parts[ONE]["licenses"][0]["license"]["id"] == "ODC-By-1.0"
    assert "url" not in parts[TWO]["licenses"][0]["license"]                  # a file's name is no address
    assert parts[ONE]["description"] == "as it was given (expert-one)"
    assert "licenses" not in parts[MERGED]                                    # its card is gone: nothing is claimed
    assert parts[DATA]["hashes"][0]["content"] == "3" * 64
    assert parts[DATA]["data"] == [{"type": "dataset", "name": "words"}]
    depends = {entry["ref"]: set(entry.get("dependsOn", ())) for entry in body["dependencies"]}
    assert depends[MODEL] == {MERGED, DATA}
    assert depends[MERGED] == {ONE, TWO}
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": DATA}]


def test_card_and_bill_say_in_full_what_a_path_goes_through(history: Provenance) -> None:
    path = {"kind": "path", "parents": [ONE, TWO], "layers": [[0, 0], [1, 1], [1, 2], [1, 2]],
            "scales": [1.0, 0.8, 1.0, 1.0], "places": [0, 3, 4, 7]}
    model, merged, *others = history.lineage
    laid = replace(history, lineage=(model, Descent(MERGED, row(3, path), (ONE, TWO), ()), *others))
    lines = [f"embeddings, final norm, head and tokenizer of {ONE[:12]}", f"layer 0 of {ONE[:12]}",
             f"layers 1 to 2 of {TWO[:12]}, at scale 0.8", f"layer 2 of {TWO[:12]} again"]
    text = model_card(laid, Obligations(tuple(LICENCES[MODEL]), {}))
    assert "\n".join(f"  {place}. {line}" for place, line in enumerate(lines)) in text
    body = bill(laid)
    parts = {part["bom-ref"]: part for part in body["components"]}
    assert {"name": "kaizend:path", "value": "; ".join(lines)} in parts[MERGED]["properties"]
    assert not any(entry["name"] == "kaizend:path" for entry in parts[ONE]["properties"])
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(body)) is None
    assert "layer" not in model_card(history, Obligations((), {})) and merged.path == []


def test_it_has_the_scores_of_the_release_with_intervals(history: Provenance) -> None:
    card = bill(history)["metadata"]["component"]["modelCard"]
    maths = next(m for m in card["quantitativeAnalysis"]["performanceMetrics"] if m["slice"].startswith("maths"))
    low, high = (float(maths["confidenceInterval"][side]) for side in ("lowerBound", "upperBound"))
    assert 0.28 < low < float(maths["value"]) == 0.31 < high < 0.34
    assert {"name": "kaizend:release:evidence", "value": "412.7"} in card["properties"]
    assert card["considerations"]["performanceTradeoffs"] == [
        "On language it may be worse than the model before it by up to 0.03."
    ]


def test_the_card_has_parents_recipe_scores_evidence_and_licences(history: Provenance) -> None:
    text = model_card(history, Obligations(tuple(LICENCES[MODEL]), {}))
    assert licences_in(text) == LICENCES[MODEL]
    for word in (MODEL, MERGED[:12], ONE[:12], '"learning_rate": 0.0001', "words (`eeeeeeeeeeee`)", "0.310 (0.28",
                 "(expert-one)", "evidence 413, 341 needed", "guard language: lost less than 0.03", "row 9",
                 '"Built with Llama"'):
        assert word in text, word
    assert "## Scores" not in model_card(replace(history, releases=()), Obligations((), {}))
