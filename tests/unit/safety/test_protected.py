"""What a release must not find changed, and how releases stop and go on."""

from pathlib import Path

import pytest
from court import Court, canned, canned_court

from safety import protected
from safety.bounds import Bounds
from safety.release import due, hindrance, nominate
from state.code import MISSING, PACKAGES, ROOT, digests_of, version_of
from state.jobs import Desk, JobSpec, Parked, Produced
from state.records import Actor, Channel, Entry, Event, Verdict


def test_every_module_that_is_protected_by_default_is_there() -> None:
    found = digests_of(ROOT, Bounds().code.modules)
    assert set(found) == set(Bounds().code.modules)
    assert MISSING not in found.values()
    assert {"safety", "state"} <= found.keys() & set(PACKAGES)


def test_the_digest_of_a_module_follows_its_bytes_names_and_absence(tmp_path: Path) -> None:
    (tmp_path / "safety").mkdir()
    (tmp_path / "safety" / "gate.py").write_text("LEVEL = 1\n")
    (tmp_path / "loops.py").write_text("pass\n")
    names = ("safety", "loops.py", "gone")
    first = digests_of(tmp_path, names)
    assert first["gone"] == MISSING
    assert digests_of(tmp_path, names) == first
    (tmp_path / "safety" / "notes.txt").write_text("not code")
    assert digests_of(tmp_path, names) == first
    (tmp_path / "safety" / "gate.py").rename(tmp_path / "safety" / "gates.py")
    assert digests_of(tmp_path, names)["safety"] != first["safety"]
    (tmp_path / "loops.py").unlink()
    assert digests_of(tmp_path, names)["loops.py"] == MISSING
    assert version_of(ROOT) != version_of(tmp_path)


@pytest.fixture
def court(tmp_path: Path) -> Court:
    court = canned_court(tmp_path / "state")
    court.bounds = Bounds.from_json({"rate": {"dwell_seconds": 0.0, "cycles_between_nominations": 0}})
    court.move_working(court.text_model("second"))
    return court


def edit(court: Court, split: str) -> None:
    file = next(court.registry.path(getattr(court.desk.seals, split)).glob("*.json"))
    file.chmod(0o600)
    file.write_text("other items")


@pytest.mark.parametrize("split", ["vault", "guard", "seal"])
def test_no_sealed_split_may_change_under_a_nomination(court: Court, split: str) -> None:
    def gate(spec: JobSpec, desk: Desk) -> Produced:
        if not spec.params.get("aa"):
            edit(court, split)
        return canned()["gate"](spec, desk)

    court.runner.jobs = {**canned(), "gate": gate}
    row = nominate(court.desk)
    assert row is not None
    assert row.verdict == Verdict.REFUSED
    assert row.reason.startswith(f"code.vault: {split} has changed")
    assert row.evidence["decision"] == "release"                    # what the gate found is kept all the same
    assert court.ledger.channel(Channel.STABLE) == row.base


def test_releases_stay_stopped_until_the_operator_resumes_and_nothing_else_counts(court: Court) -> None:
    first = court.runner.jobs
    court.runner.jobs = {**canned(), "gate": tampering(court)}
    assert nominate(court.desk) is not None
    court.runner.jobs = first
    court.move_working(court.text_model("third"))
    assert str(hindrance(court.desk)).startswith("code.bounds: ")
    assert not due(court.desk)
    court.ledger.append(Entry(Event.OPERATOR, "something else", change={"act": "set loop state"}))
    assert nominate(court.desk) is None
    court.ledger.append(Entry(Event.OPERATOR, "resumed", change={"act": "resume"}, actor=Actor.OPERATOR))
    assert protected.stopped(court.ledger) is None
    row = nominate(court.desk)
    assert row is not None
    assert row.verdict == Verdict.PROMOTED


def tampering(court: Court) -> object:
    def gate(spec: JobSpec, desk: Desk) -> Produced:
        court.bounds = Bounds.from_json({**court.bounds.to_json(), "gate": {"alpha": 0.4}})
        return canned()["gate"](spec, desk)
    return gate


def test_a_change_while_the_daemon_was_down_is_seen_by_the_one_that_finishes_the_nomination(court: Court) -> None:
    def park(spec: JobSpec, desk: Desk) -> Produced:
        raise Parked

    jobs = court.runner.jobs
    court.runner.jobs = {**jobs, "gate": park}
    with pytest.raises(Parked):
        nominate(court.desk)
    edit(court, "vault")
    court.runner.jobs = jobs
    row = nominate(court.desk)
    assert row is not None
    assert (row.verdict, "code.vault" in row.reason) == (Verdict.REFUSED, True)


def test_a_nomination_of_a_version_that_kept_no_digests_is_finished_as_it_was_begun(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(protected, "digests", lambda *_: None)
        row = nominate(court.desk)
    assert row is not None
    assert row.verdict == Verdict.PROMOTED


def test_warning_levels_may_change_under_a_nomination(court: Court) -> None:
    def gate(spec: JobSpec, desk: Desk) -> Produced:
        court.bounds = Bounds.from_json({**court.bounds.to_json(), "warn": {"gate.alpha": 0.01}})
        return canned()["gate"](spec, desk)

    court.runner.jobs = {**canned(), "gate": gate}
    row = nominate(court.desk)
    assert row is not None
    assert row.verdict == Verdict.PROMOTED


def test_the_merge_out_of_which_a_model_came_is_known_unless_it_was_trained_since(court: Court) -> None:
    from state.records import Budget, Candidate, LoopName, Outcome

    def closed(change: dict[str, object], result: str, parent: int | None = None) -> int:
        candidate = Candidate(LoopName.ARCHITECTURE, change, "b", "b")
        ordinal = court.ledger.root_count() if parent is None else 0
        cycle = court.ledger.open_cycle(parent, ordinal, candidate, {}, Budget(1, 1, 1))
        if parent is None and change.get("trains"):
            closed({"recipe": {}}, result, cycle.id)
        court.ledger.close_cycle(cycle, Outcome(Verdict.PROMOTED, "better", result), {})
        return cycle.id

    merged, trained = court.text_model("merged"), court.text_model("trained")
    closed({"kind": "merge", "weights": [1]}, merged)
    closed({"kind": "merge", "weights": [2], "trains": True}, trained)
    assert court.ledger.merge_of(merged) == {"kind": "merge", "weights": [1]}
    assert court.ledger.merge_of(trained) is None
    assert court.ledger.merge_of(court.text_model("first")) is None
