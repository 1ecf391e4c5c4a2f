"""The picture of a reward lineage: proxy and truth, what the shapings paid for, alarms; and one segment from inside.

Rows of the ledger in, SVG text out. Every number is one that a closed reward cycle's row keeps. Pure; standard library
only, so that whoever shows a page can draw it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import Any, Final

from state.records import Row, Verdict

WIDTH, LEFT, RIGHT = 880, 60, 190                  # pixels, as are all places and lengths below
TOP, PANEL, GAP = 56, 150, 62
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b", "#000000", "#7f7f7f")
"""Told apart by people who do not see all colours (Okabe and Ito)."""
TRUTH, PROXY, EXPECTED, CONTROL = COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[7]
ALARM: Final = "#b00020"
LEAST_SPAN: Final = 0.01

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    values: Values
    colour: str
    dashes: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """Where one chart stands, and its scales. `count` points stand on its width, the first at 0."""

    top: float
    count: int
    step: float
    least: float
    most: float

    @classmethod
    def over(cls, top: float, count: int, values: Iterable[float]) -> Panel:
        """One on which all of `values` find room, and 0, between round numbers."""
        known = [0.0, LEAST_SPAN, *values]
        step = _round_step((max(known) - min(known)) / 4)
        return cls(top, max(1, count), step, step * math.floor(min(known) / step), step * math.ceil(max(known) / step))

    def x(self, place: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (place + 0.5) / self.count

    def y(self, value: float) -> float:
        return self.top + PANEL * (self.most - value) / (self.most - self.least)

    def frame(self, title: str, below: str, labels: Callable[[int], str]) -> Iterator[str]:
        yield _text(LEFT, self.top - 10, title, weight="600")
        for part in range(round((self.most - self.least) / self.step) + 1):
            value = round((self.least + self.step * part) / self.step) * self.step
            yield _line(LEFT, self.y(value), WIDTH - RIGHT, self.y(value), "#e8e8e8" if part else "#bbbbbb")
            yield _text(LEFT - 6, self.y(value) + 4, f"{value + 0.0:.3g}", anchor="end")
        for place in range(0, self.count, max(1, math.ceil(self.count / 16))):
            yield _text(self.x(place), self.top + PANEL + 16, labels(place), anchor="middle")
        yield _text((LEFT + WIDTH - RIGHT) / 2, self.top + PANEL + 32, below, anchor="middle")

    def curve(self, line: Line) -> Iterator[str]:
        """The known values joined where they are neighbours, a dot on each where they are few."""
        points = [None if v is None else (self.x(i), self.y(v)) for i, v in enumerate(line.values)]
        path, pen = [], "M"
        for point in points:
            if point is not None:
                path.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
            pen = "M" if point is None else "L"
        if path:
            dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
            yield f'<path d="{" ".join(path)}" fill="none" stroke="{line.colour}" stroke-width="1.8"{dashes}/>'
        if len(points) <= 60:
            yield from (f'<circle cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="2.4" fill="{line.colour}"/>' for p in points if p)

    def legend(self, entries: Sequence[tuple[str, str]]) -> Iterator[str]:
        for place, (name, colour) in enumerate(entries):
            y = self.top + 8 + 17 * place
            yield f'<rect x="{WIDTH - RIGHT + 14}" y="{y - 8:.1f}" width="12" height="10" fill="{colour}"/>'
            yield _text(WIDTH - RIGHT + 32, y + 1, name)


def drawn(rows: Sequence[Row], chosen: Row) -> str:
    """The segments of a lineage by the closing rows of its cycles, oldest first; and `chosen`, one of them, inside."""
    parts = [
        _text(LEFT, 22, f"lineage {_lineage(chosen)}: {len(rows)} segment{'s' if len(rows) != 1 else ''}, rows "
                        f"{rows[0].id} to {rows[-1].id}", size=15, weight="600"),
        *_beneath(rows, chosen), *_success(rows, TOP), *_weights(rows, TOP + PANEL + GAP),
        *_inside(chosen, TOP + 2 * (PANEL + GAP)),
    ]
    height = TOP + 3 * PANEL + 2 * GAP + 46
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
        + "\n".join(parts) + "\n</svg>\n"
    )


def _beneath(rows: Sequence[Row], chosen: Row) -> Iterator[str]:
    """A strip behind the segment that is shown from inside, where there are others."""
    for place, row in enumerate(rows):
        if row.id == chosen.id and len(rows) > 1:
            panel = Panel.over(TOP, len(rows), [])
            x, width = panel.x(place - 0.5), panel.x(1) - panel.x(0)
            yield f'<path d="M{x:.1f} {TOP}h{width:.1f}v{2 * PANEL + GAP}h-{width:.1f}z" fill="#f1f1f1"/>'


def _success(rows: Sequence[Row], top: float) -> Iterator[str]:
    lines = [
        Line("proxy of the shaped arm", [_proxy(row) for row in rows], PROXY, "6 3"),
        Line("success of the kept arm", [_number(_seen(row).get("success")) for row in rows], TRUTH),
        Line("q after it", [_number(_seen(row).get("q_after")) for row in rows], EXPECTED),
    ]
    panel = Panel.over(top, len(rows), _known(lines))
    yield from panel.frame("proxy and truth", "row of the segment", lambda place: str(rows[place].id))
    for line in lines:
        yield from panel.curve(line)
    for place, row in enumerate(rows):
        x, rang = panel.x(place), _alarms(row)
        if rang:
            yield _line(x, top, x, top + PANEL, ALARM, dashes="2 3")
            yield _text(x + 3, top + 10, ", ".join(rang), colour=ALARM)
        if row.verdict == Verdict.PROMOTED:
            yield f'<path d="M{x - 4:.1f} {top + PANEL + 1:.1f}h8l-4 -7z" fill="#444444"/>'
        elif row.verdict != Verdict.REJECTED:
            yield _text(x, top + PANEL - 4, "×", anchor="middle", colour=ALARM)
    shown = [(line.name, line.colour) for line in lines if any(value is not None for value in line.values)]
    yield from panel.legend([*shown, ("▲ accepted", "none"), ("× failed", "none"), ("alarm or guard", ALARM)])


def _weights(rows: Sequence[Row], top: float) -> Iterator[str]:
    paid = [_paid(row) for row in rows]
    names = sorted({name for weights in paid for name in weights})
    panel = Panel.over(top, len(rows), (sum(weights.values()) for weights in paid))
    yield from panel.frame("what the shaping paid: strength × weight", "row of the segment",
                           lambda place: str(rows[place].id))
    width = 0.7 * (panel.x(1) - panel.x(0)) if len(rows) > 1 else 40.0
    for place, weights in enumerate(paid):
        below = 0.0
        for number, name in enumerate(names):
            if value := weights.get(name, 0.0):
                y, height = panel.y(below + value), panel.y(below) - panel.y(below + value)
                yield (f'<rect x="{panel.x(place) - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" '
                       f'height="{height:.1f}" fill="{COLOURS[number % len(COLOURS)]}"/>')
                below += value
    entries = [(name, COLOURS[number % len(COLOURS)]) for number, name in enumerate(names)]
    yield from panel.legend(entries or [("zero shaping throughout", "none")])


def _inside(row: Row, top: float) -> Iterator[str]:
    trace = _table(_seen(row).get("trace"))
    zero, shaped = _table(trace.get("zero")), _table(trace.get("shaped"))
    lines = [
        Line("success, zero shaping", _numbers(zero.get("truth")), CONTROL),
        Line("success, shaped", _numbers(shaped.get("truth")), TRUTH),
        Line("proxy, shaped", _numbers(shaped.get("proxy")), PROXY, "6 3"),
    ]
    lines = [line for line in lines if line.values]
    panel = Panel.over(top, max([1, *(len(line.values) for line in lines)]), _known(lines))
    first = _number(_table(row.change).get("from_step")) or 0.0
    width = (_number(_seen(row).get("steps")) or panel.count) / panel.count
    yield from panel.frame(f"inside the segment of row {row.id}", "step of training",
                           lambda place: f"{first + width * (place + 1):.0f}")
    for line in lines:
        yield from panel.curve(line)
    yield from panel.legend([(line.name, line.colour) for line in lines] or [("no trace was kept", "none")])
    over = _table(_seen(row).get("over_zero"))
    told = [f"kept: {row.evidence['arm']}"] if _seen(row).get("arm") else [str(row.verdict)]
    if over:
        told.append(f"over zero {over.get('mean', 0.0):+.4f} ± {over.get('stderr', 0.0):.4f}")
    told += _alarms(row)
    for place, text in enumerate(told):
        yield _text(WIDTH - RIGHT + 14, top + PANEL - 17 * (len(told) - 1 - place), text)


def _alarms(row: Row) -> list[str]:
    """Names of what rang, the guard on q last."""
    names = [str(_table(alarm).get("name", "alarm")) for alarm in _seen(row).get("alarms") or []]
    return [*names, *(["q collapsed"] if _seen(row).get("guard") else [])]


def _proxy(row: Row) -> float | None:
    values = _numbers(_table(_table(_seen(row).get("trace")).get("shaped")).get("proxy"))
    return fmean(values) if values else None


def _paid(row: Row) -> dict[str, float]:
    """Strength times weight by feature, of the shaping that was carried out."""
    shaping = _table(_table(row.change).get("shaping"))
    weights = {name: value for name, value in _table(shaping.get("weights")).items() if _number(value)}
    if _table(_seen(row).get("learned")).get("left_out"):
        weights.pop("learned", None)
    scale = max(1.0, sum(abs(value) for value in weights.values()))
    return {name: (_number(shaping.get("strength")) or 0.0) * abs(value) / scale for name, value in weights.items()}


def _lineage(row: Row) -> str:
    return str(_table(row.change).get("lineage", "?"))


def _round_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, the smallest that is no less than `span`."""
    power = 10.0 ** math.floor(math.log10(span))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= span * (1 - 1e-9))


def _known(lines: Sequence[Line]) -> Iterator[float]:
    return (value for line in lines for value in line.values if value is not None)


def _seen(row: Row) -> Mapping[str, Any]:
    """The evidence of a row; one that was tampered with shows nothing."""
    return _table(row.evidence)


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _numbers(value: Any) -> list[float]:
    return [found for each in value if (found := _number(each)) is not None] if isinstance(value, list) else []


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashed}/>'


def _text(
    x: float, y: float, text: str, anchor: str = "start", size: int = 12, weight: str = "400", colour: str = "#222222",
) -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
            f'fill="{colour}">{escape(text)}</text>')
