"""The bill of materials of an exported model, as CycloneDX has it for machine learning (ML-BOM, specification 1.6).

The model with its files, the models and data it was made of, and what came from what. The library writes everything but
the model card and the kind of a data set, which it has no types for: those two are put into its JSON. The only file
that imports it. Invariant: the same provenance gives the same bill; time and serial number come from the ledger's row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

from cyclonedx.model import HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseAcknowledgement
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.spdx import fixup_id

from daemon.provenance import Descent, Provenance
from daemon.scores import scores_of
from safety.licences import Licence
from state.records import JsonObject, Row, digest_of

SPDX = {"c-uda": "C-UDA-1.0", "odc-by": "ODC-By-1.0", "odbl": "ODbL-1.0", "pddl": "PDDL-1.0", "lgpl-lr": "LGPLLR"}
"""Identifiers of model cards that SPDX spells otherwise than by its capitals."""
ADDRESS = re.compile(r"https?://[!-~]+")
DIGITS = "{:.6g}".format


def bill_of_materials(
    history: Provenance, files: Mapping[str, str], config: JsonObject, licences: Mapping[str, Sequence[Licence]],
    manifests: Mapping[str, Mapping[str, str]],
) -> JsonObject:
    """The bill as JSON.

    `files` are the exported files by name with their SHA-256, but for the bill itself; `licences` those of every model
    whose card is there; `manifests` the files of every artefact that the ledger knows, by digest.
    """
    model = _model(history.lineage[0], licences.get(history.model, ()))
    model.components = [_file(name, content) for name, content in sorted(files.items())]
    others = [_model(descent, licences.get(descent.model, ())) for descent in history.lineage[1:]]
    data = [_data(name, digest, manifests.get(digest, {})) for name, digest in history.met.items()]
    tool = Component(type=ComponentType.APPLICATION, name="kaizend", bom_ref="kaizend")
    bom = Bom(
        components=[*others, *data], serial_number=_serial(history),
        metadata=BomMetaData(component=model, timestamp=_moment(history.row), tools=ToolRepository(components=[tool])),
    )
    made = {_ref(component): component for component in (model, *others, *data)}
    for descent in history.lineage:
        used = [*descent.parents, *(history.met[name] for name in descent.data)]
        bom.register_dependency(made[descent.model], [made[digest] for digest in used])
    body: JsonObject = json.loads(JsonV1Dot6(bom).output_as_string())
    body["metadata"]["component"]["modelCard"] = _card(history, config)
    for component in body.get("components", ()):          # an operator's own model has none
        if component["type"] == "data":
            component["data"] = [{"type": "dataset", "name": component["name"]}]
    return body


def _ref(component: Component) -> str:
    return str(component.bom_ref.value)


def _model(descent: Descent, licences: Sequence[Licence]) -> Component:
    digest = descent.model
    said = {"hash-of": "the folder's files and their SHA-256, as canonical JSON"}
    said |= {"path": "; ".join(descent.path)} if descent.path else {}
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL, name=digest[:12], version=digest, bom_ref=digest,
        description=descent.made, hashes=[_hash(digest)], licenses=[_licence(licence) for licence in licences],
        properties=[Property(name=f"kaizend:{name}", value=value) for name, value in said.items()],
    )


def _file(name: str, content: str) -> Component:
    return Component(type=ComponentType.FILE, name=name, bom_ref=f"file:{name}", hashes=[_hash(content)])


def _data(name: str, digest: str, files: Mapping[str, str]) -> Component:
    """A data set. Its hash is that of its one file where that is known."""
    hashes = [_hash(content) for content in files.values()] if len(files) == 1 else []
    return Component(
        type=ComponentType.DATA, name=name, version=digest, bom_ref=digest, hashes=hashes,
        description="training data, by its name in kaizend.toml",
    )


def _hash(content: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=content)


def _licence(licence: Licence) -> DisjunctiveLicense:
    """By its SPDX identifier where it has one, else by name, with the address of its text where the card gives one."""
    declared = LicenseAcknowledgement.DECLARED
    spdx = None if licence.own else SPDX.get(licence.name) or fixup_id(licence.name)
    if spdx:
        return DisjunctiveLicense(id=spdx, acknowledgement=declared)
    url = XsUri(licence.link) if ADDRESS.fullmatch(licence.link) else None
    return DisjunctiveLicense(name=licence.own or licence.name, url=url, acknowledgement=declared)


def _serial(history: Provenance) -> UUID:
    """The same for the same model and row of the ledger."""
    return UUID(hex=digest_of(["bill of materials", history.model, history.row.hash])[:32], version=5)


def _moment(row: Row) -> datetime:
    moment = datetime.fromisoformat(row.time)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _card(history: Provenance, config: JsonObject) -> JsonObject:
    """The modelCard of the specification: what the model is, how it scored, what it was judged on."""
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    parameters: JsonObject = {"task": "text-generation", "architectureFamily": str(config.get("model_type", ""))}
    parameters |= {"modelArchitecture": architecture} if architecture else {}
    parameters |= {"datasets": [{"ref": digest} for digest in history.met.values()]} if history.met else {}
    card: JsonObject = {"bom-ref": f"card:{history.model}", "modelParameters": parameters}
    release = history.release
    if release is None:
        return {**card, "considerations": {"technicalLimitations": ["It was never released as stable."]}}
    evidence = release.evidence
    scores = list(scores_of(evidence))
    limits = [f"It was judged on these tasks alone: {', '.join(score.task for score in scores)}."]
    lost = [
        f"On {name} it may be worse than the model before it by up to {guard['margin']:g}."
        for name, guard in sorted(evidence["guards"].items())
    ]
    considerations: JsonObject = {"technicalLimitations": limits}
    considerations |= {"performanceTradeoffs": lost} if lost else {}
    return {
        **card,
        "quantitativeAnalysis": {"performanceMetrics": [
            {
                "type": "accuracy", "slice": f"{score.task}, {score.items} sealed items",
                "value": DIGITS(score.new.value),
                "confidenceInterval": {"lowerBound": DIGITS(score.new.low), "upperBound": DIGITS(score.new.high)},
            } for score in scores
        ]},
        "considerations": considerations,
        "properties": list(_evidence(release)),
    }


def _evidence(release: Row) -> Iterator[JsonObject]:
    """The evidence of the release, number by number, as the ledger has it."""
    evidence = release.evidence
    said = {
        "row": release.id, "row-hash": release.hash, "nomination": evidence["k"], "alpha": DIGITS(evidence["alpha"]),
        "level": DIGITS(evidence["alpha_k"]), "evidence": DIGITS(evidence["e"]),
        "needed": DIGITS(evidence["threshold"]), "items": evidence["n"],
    }
    for name, value in said.items():
        yield {"name": f"kaizend:release:{name}", "value": str(value)}
