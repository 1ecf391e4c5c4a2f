"""The page of the gate's study: its tables in Markdown, and whether what the design asks for holds."""

from __future__ import annotations

import time
from collections.abc import Callable

from studies import gate
from studies.gate import Figures
from studies.lives import DISCORDANCE

NULL_LIVES, NOMINATIONS, NULL_SEED = 200, 1_000, 1
GAIN_LIVES, CANDIDATES, GAIN_SEED = 100, 1_500, 2
LEAST_SHARE = 0.9


def page(lives: int | None = None) -> tuple[str, bool]:
    """The text of docs/studies/gate.md, and whether both requirements are met."""
    began = time.monotonic()
    null = gate.null_world(lives or NULL_LIVES, NOMINATIONS, NULL_SEED)
    gains = gate.world_of_gains(lives or GAIN_LIVES, CANDIDATES, GAIN_SEED)
    false, _, high = null[0].false_lives
    share, half = gate.share_of_loose_gain(gains[0])
    safe, strong = false / len(null[0].lives) <= gate.ALPHA, share >= LEAST_SHARE
    minutes = (time.monotonic() - began) / 60
    return f"""# The gate, beside what others do

`make study NAME=gate` repeats this ({minutes:.0f} minutes on one core; seeds {NULL_SEED} and {GAIN_SEED}).
`studies/gate.py` is the simulation: levels, bets, futility and decisions are the product's own (`safety.gate`,
`safety.eprocess`), models are counts of right answers on a vault of {gate.VAULT:,} items that is the same for a whole
life. Every candidate differs from the model it was made from on {DISCORDANCE:.0%} of the items. alpha =
{gate.ALPHA}. Intervals are 95 %: Wilson's for shares of lives, normal for means over lives.

## No candidate is ever better

{len(null[0].lives)} lives of {NOMINATIONS:,} nominations; every release is false. The two channels climb on fresh
search items ({gate.FRESH} a comparison, one-sided p < .05) and nominate whatever moved; the others are asked about
every candidate.

| rule | lives with a false release | false releases a life |
|---|---|---|
{_rows(null, _null_row)}

Required: at most {gate.ALPHA:.0%} of lives. **{"Met" if safe else "Not met"}**: {false} of {len(null[0].lives)}, and
with 95 % confidence no more than {high:.1%}.

## Rare real gains

{len(gains[0].lives)} lives of {CANDIDATES:,} candidates, the first model {gate.START:.0%} right; {gate.GOOD:.0%} of the
candidates are better (by {100 * gate.GAIN:.1f} points on average, exponential), the others worse (by
{100 * gate.LOSS:.1f}).

| rule | true gain of the model in force, points | releases a life | false among them | lives with a false one |
|---|---|---|---|---|
{_rows(gains, _gain_row)}

The loose channel by itself, working, gained {_points(gains[0], "loose")} points in the same lives.
Required: stable keeps at least {LEAST_SHARE:.0%} of that. **{"Met" if strong else "Not met"}**: {100 * share:.1f} %
± {100 * half:.1f}.

## What it says, and what it does not

- A false release is one whose true accuracy is not above that of the model it replaced. The simulation knows it; nobody
  else does.
- Rules that ask a large vault about every candidate gain *more* true accuracy here than the two channels, and release
  worse models along the way, which they cannot tell from better ones.
- The Ladder bounds how far a reported best score is from the truth, not how often a champion is really better, which is
  what is counted here.
- An e-process on every step is as safe and gains less: single steps are too small to show at its levels.
- Items are answered independently. In real worlds items share parts; the bound then speaks of the vault as a fixed
  population met in random order.
""", safe and strong


def _rows(figures: list[Figures], row: Callable[[Figures], str]) -> str:
    return "\n".join(row(found) for found in figures)


def _null_row(found: Figures) -> str:
    count, low, high = found.false_lives
    mean, half = found.mean("false")
    return f"| {found.name} | {count} of {len(found.lives)} ({low:.1%} to {high:.1%}) | {mean:.2f} ± {half:.2f} |"


def _gain_row(found: Figures) -> str:
    count, low, high = found.false_lives
    releases, false = found.mean("releases")[0], found.mean("false")[0]
    return (
        f"| {found.name} | {_points(found, 'gain')} | {releases:.1f} | {false:.1f} | "
        f"{count} of {len(found.lives)} ({low:.0%} to {high:.0%}) |"
    )


def _points(found: Figures, what: str) -> str:
    mean, half = found.mean(what)
    return f"{100 * mean:+.1f} ± {100 * half:.1f}"
