"""The honest control of the architecture search (the job "random_search"): random genotypes on the same budget.

Same definition, same coarse-to-fine rule, same item sets per generation and same number of candidates as the real
search, but nothing is learnt from a score beyond which point did best. Its winner is what any claim about the search
is printed beside.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loops.architecture.loop import coarse_to_fine
from loops.architecture.search import Told
from loops.architecture.settings import ArchitectureSettings, SearchKind
from loops.work.screen import Bed
from safety.yardstick.scoring import Scores
from state.jobs import Desk, JobSpec, Produced
from state.records import JsonObject

FINALISTS = 5


def random_search(spec: JobSpec, desk: Desk) -> Produced:
    """Job "random_search". Inputs "model:<digest>" of base, parents and incumbent, and "seal".

    Params: settings (fields of ArchitectureSettings that differ from its defaults), base, parents, trained,
    incumbent, tasks, count (candidates), final_seed, batch. The best few by their advantage over the incumbent on the
    shared items meet once more on `settings.fresh_items` fresh ones; values: change, fitness (of the winner on the
    shared items), fresh_fitness, advantages (one a candidate) and candidates.
    """
    bed, params = Bed.of(spec, desk), spec.params
    settings = settings_from(params["settings"])
    search = coarse_to_fine(settings, params["base"], tuple(params["parents"]), tuple(params.get("trained", [])))
    state = search.start()
    tried: list[JsonObject] = []
    for done in range(params["count"]):
        change = search.ask(state)
        seed = change["search"]["items_seed"]
        scores, known = _scores(bed, change, settings.fitness_items, seed, params["incumbent"])
        fitness, advantage = float(scores.mean()), float(scores.mean() - known.mean())
        state = search.tell(state, change, Told(fitness, advantage))
        tried.append({"change": change, "fitness": fitness, "advantage": advantage})
        desk.progress((done + 1) / params["count"], f"best {max(entry['advantage'] for entry in tried):+.3f}")
    finalists = sorted(tried, key=lambda entry: -entry["advantage"])[:FINALISTS]
    for entry in finalists:
        scores, _ = _scores(bed, entry["change"], settings.fresh_items, params["final_seed"], params["incumbent"])
        entry["fresh"] = float(scores.mean())
    best = max(finalists, key=lambda entry: entry["fresh"])
    values: JsonObject = {
        "change": {key: value for key, value in best["change"].items() if key != "search"},
        "fitness": best["fitness"], "fresh_fitness": best["fresh"], "candidates": len(tried),
        "advantages": [round(entry["advantage"], 6) for entry in tried],
    }
    items = len(bed.tasks) * (len(tried) * settings.fitness_items + len(finalists) * settings.fresh_items)
    return Produced(values, items=items + bed.book.scored)


def settings_from(body: JsonObject) -> ArchitectureSettings:
    """Architecture settings for the control; lists become tuples and the search is random. TypeError on odd keys."""
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in body.items()}
    return ArchitectureSettings(**{**fields, "search": SearchKind.RANDOM})


def _scores(bed: Bed, change: JsonObject, count: int, seed: int, incumbent: str) -> tuple[Scores, Scores]:
    """Scores of the candidate and of the incumbent on the same items, all tasks joined."""
    candidate, drawn = bed.candidate(change), bed.drawn(count, seed)
    mine = np.concatenate([bed.scored(candidate, part) for part in drawn])
    return mine, np.concatenate([bed.known(incumbent, part) for part in drawn])
