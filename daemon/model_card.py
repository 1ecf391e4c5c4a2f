"""The card of an exported model, as Markdown: how it came to be, its scores with the evidence of its release, and what
its licences ask for. Pure; deterministic in what it is given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from daemon.data_seen import data_in_words, data_seen
from daemon.provenance import Provenance
from daemon.scores import Score, scores_of
from daemon.words import model_name
from safety.licences import Obligations
from state.records import Row


def model_card(history: Provenance, owed: Obligations) -> str:
    """The text of README.md."""
    front = owed.front_matter("library_name: transformers", "tags: [kaizend]")
    parts = [f"# Model {history.model[:12]}\n\nDigest `{history.model}`.\n", _origin(history), _recipe(history)]
    parts += [_scores(history.release)] if history.release else []
    return "\n".join([front, *filter(None, parts), _evidence(history), owed.in_words()])


def _origin(history: Provenance) -> str:
    lines = ["## How it came to be", ""]
    for descent in history.lineage:
        parents = ", ".join(f"`{model_name(parent)}`" for parent in descent.parents)
        lines.append(f"- `{model_name(descent.model)}` {descent.made}" + (f", from {parents}" if parents else ""))
        lines += [f"  {place}. {line}" for place, line in enumerate(descent.path)]
    if history.met:
        lines += ["", "Trained on: " + ", ".join(f"{name} (`{digest[:12]}`)" for name, digest in history.met.items())]
        lines += ["", *(f"- {line}" for line in data_in_words(data_seen(history.lineage, history.data)))]
    return "\n".join(lines) + "\n"


def _recipe(history: Provenance) -> str:
    recipe = history.lineage[0].recipe
    return f"## Recipe\n\n```json\n{json.dumps(recipe, indent=2, sort_keys=True)}\n```\n" if recipe else ""


def _scores(release: Row) -> str:
    """The scores behind a release, a row a task."""
    evidence = release.evidence
    lines = ["## Scores", "", "| task | items | this model | the one before it |", "|---|---|---|---|"]
    lines += [_score_line(score) for score in scores_of(evidence)]
    lines += ["", "Accuracy on the sealed items that were scored, with Wilson's 95 % interval for each by itself. The"]
    lines += ["release does not rest on these but on the paired tests:", ""]
    lines += [
        f"- nomination {evidence['k']} of this life, tested at {evidence['alpha_k']:.3g} of alpha "
        f"{evidence['alpha']:g}: evidence {evidence['e']:.3g}, {evidence['threshold']:.3g} needed, "
        f"{evidence['n']} items"
    ]
    lines += [
        f"- guard {name}: lost less than {guard['margin']:g}, evidence {guard['e']:.3g} on {guard['n']} items"
        for name, guard in sorted(evidence["guards"].items())
    ]
    return "\n".join(lines) + "\n"


def _score_line(score: Score) -> str:
    new, old = (f"{part.value:.3f} ({part.low:.3f} to {part.high:.3f})" for part in (score.new, score.old))
    return f"| {score.task} | {score.items} | {new} | {old} |"


def _evidence(history: Provenance) -> str:
    return "\n".join(["## Evidence", "", *_rows(history)]) + "\n"


def _rows(history: Provenance) -> Iterator[str]:
    for row in history.releases:
        yield f"- row {row.id}, {row.time}: {row.verdict}, {row.reason}"
    if not history.releases:
        yield "It was never released as stable."
