"""`kaizend export`: a model as others take it. The folder, a card, its lineage and its bill of materials.

Everything that is said is read from the ledger and from the cards of the models that went in. Invariants: the folder
appears whole or not at all; nothing that is there is written over; exporting the same model again from the same ledger
gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from daemon.bill_of_materials import bill_of_materials
from daemon.keeping import beside, own_folder
from daemon.model_card import model_card
from daemon.provenance import Provenance, provenance
from daemon.reports import artefact_path, digest_named, places_of
from safety.headers import HeaderError, read_json
from safety.licences import BILL, CARD, LINEAGE, card_of, is_inherited, licences_in, obligations_of
from state.errors import UserError
from state.reading import Reading
from state.records import JsonObject


def export_model(config: Path | None, what: str, folder: Path) -> str:
    """Write a model into a new or empty folder; what was done, in words. Raises UserError."""
    places, whole = places_of(config), folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder: give a new one")
    if whole == Path.cwd():
        raise UserError(f"{folder} is the folder you are in: give a new one")
    with Reading(places.database) as reading:
        digest = digest_named(reading, what)
        if not (artefact_path(places, digest) / "config.json").is_file():
            raise UserError(f"{what}: {digest[:12]} is not a model that is kept")
        history = provenance(reading, digest)
        records = {name: reading.artefact(name) for name in [*_models(history), *history.met.values()]}
    folders = {model: path for model in _models(history) if (path := artefact_path(places, model)).is_dir()}
    try:
        with own_folder(beside(whole, "export")) as partial:
            _write(partial, history, folders, {name: record for name, record in records.items() if record})
            if folder.is_dir():
                folder.rmdir()
            partial.rename(folder)
    except (OSError, HeaderError) as error:
        raise UserError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from error
    return f"{digest[:12]} is in {folder}"


def _write(folder: Path, history: Provenance, folders: dict[str, Path], records: dict[str, JsonObject]) -> None:
    source, owed = folders[history.model], obligations_of(folders.values())
    shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=shutil.copyfile, ignore=lambda place, names: (
        [name for name in names if not is_inherited(name)] if Path(place) == source else []
    ))
    folder.chmod(0o755)
    owed.write_notices(folder)
    (folder / CARD).write_text(model_card(history, owed), encoding="utf-8")
    (folder / LINEAGE).write_text(_text([
        {"model": descent.model, "made": descent.made, "from": list(descent.parents), "change": descent.recipe}
        for descent in history.lineage
    ]), encoding="utf-8")
    known = records.get(history.model, {}).get("files", {})
    written = {CARD, LINEAGE, *owed.notices}
    files = {
        name: known[name] if name in known and name not in written else _sha256(folder / name)
        for name in sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    }
    licences = {model: licences_in(card_of(path)) for model, path in folders.items()}
    (folder / BILL).write_text(_text(bill_of_materials(
        history, files, read_json(folder / "config.json"), {**licences, history.model: list(owed.licences)},
        {name: record["files"] for name, record in records.items()},
    )), encoding="utf-8")


def _models(history: Provenance) -> list[str]:
    return [descent.model for descent in history.lineage]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _text(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
