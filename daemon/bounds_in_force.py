"""Which bounds apply now: read at start and on reload, and compared with the last ones in the ledger.

Tightening applies at once and is recorded. Loosening is an operator's act with a reason of its own: until
`kaizend bounds loosen` has recorded it, a start is refused (exit 78) and a reload keeps the old ones.
"""

from __future__ import annotations

from pathlib import Path

from safety.bounds import Bounds, load_bounds, loosened
from state.errors import ConfigurationError, UserError
from state.ledger import Ledger
from state.records import Actor, Entry, Event


class BoundsInForce:
    """Called, it gives the bounds in force. Raises ConfigurationError when made with bounds looser than recorded."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path = path
        self.ledger = ledger
        fresh = load_bounds(path)
        looser = self._looser(fresh)
        if looser:
            raise ConfigurationError(
                f"{path} allows more than the ledger's last bounds ({'; '.join(looser)}): tighten it again, or record "
                "the change with `kaizend bounds loosen --reason ...`"
            )
        self._bounds = fresh

    def record(self) -> None:
        """Write down what applies from this start on, once there is a life to which it applies."""
        self._record(self._bounds, "bounds at start", Actor.LOOP)

    def __call__(self) -> Bounds:
        return self._bounds

    def reload(self) -> str:
        """Apply the file if it only tightens. Returns what happened, in words."""
        try:
            fresh = load_bounds(self.path)
        except UserError as error:
            return f"kept the old bounds: {error}"
        looser = self._looser(fresh)
        if looser:
            return f"kept the old bounds: the file is looser ({'; '.join(looser)})"
        if fresh == self._bounds:
            return "bounds unchanged"
        self._record(fresh, "bounds tightened on reload", Actor.OPERATOR)
        self._bounds = fresh
        return "tightened"

    def _looser(self, fresh: Bounds) -> list[str]:
        recorded = recorded_bounds(self.ledger)
        return loosened(recorded, fresh) if recorded else []

    def _record(self, fresh: Bounds, reason: str, actor: Actor) -> None:
        if recorded_bounds(self.ledger) != fresh:
            record_bounds(self.ledger, fresh, reason, actor)


def recorded_bounds(ledger: Ledger) -> Bounds | None:
    """The bounds that the ledger saw last."""
    row = ledger.latest(Event.BOUNDS)
    return Bounds.from_json(row.change["after"]) if row else None


def record_bounds(ledger: Ledger, fresh: Bounds, reason: str, actor: Actor) -> None:
    """Write a BOUNDS row with the bounds before and after and the keys that became looser."""
    before = recorded_bounds(ledger)
    change = {
        "before": before.to_json() if before else None,
        "after": fresh.to_json(),
        "looser": loosened(before, fresh) if before else [],
    }
    ledger.append(Entry(Event.BOUNDS, reason, change=change, actor=actor))
