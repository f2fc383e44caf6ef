"""The lives side by side as one SVG: a column a policy, a row a step, the ioctls in order."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from xml.etree import ElementTree

from pyvfio.replay.life import Life
from pyvfio.replay.verdict import judge
from pyvfio.replay.wording import LEGEND, calls, gsis, summary

_MARGIN, _LABELS, _COLUMN, _GAP = 24, 110, 250, 10
_LINE, _PAD, _FONT = 17, 8, 12
_CHARACTER = 7.3  # width of one, pixels
_COLOURS = {
    "G": "#7a4fbf",
    "I": "#1f6fb2",
    "S": "#3c6e3c",
    "D": "#a05a00",
}
_GOOD, _BAD, _NOTE = ("#e4f4e4", "#1d6b1d"), ("#fbe0de", "#b3261e"), ("#f3f1e6", "#6b6030")


def svg(title: str, lives: Sequence[Life]) -> str:
    """Draw lives of the same steps.

    Args:
        title: of the picture.
        lives: a column each.

    Returns:
        The SVG document.
    """
    width = 2 * _MARGIN + _LABELS + len(lives) * (_COLUMN + _GAP)
    root = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "width": str(width),
            "font-family": "ui-monospace, 'DejaVu Sans Mono', monospace",
            "font-size": str(_FONT),
        },
    )
    ElementTree.SubElement(root, "title").text = title
    background = _box(root, 0, 0, width, 0, "#ffffff")
    y: float = _MARGIN + _LINE
    _text(root, _MARGIN, y, title, size=16, weight="bold")
    y += _LINE
    for column, life in enumerate(lives):
        _text(root, _x(column), y + _LINE, life.variant.name, size=14, weight="bold")
        commit = f"{life.variant.policy.commit}, {life.mapping}"
        _text(root, _x(column), y + 2 * _LINE, commit, colour="#666666")
        where = ", ".join(
            f"{half} {'MODELLED' if kernel == 'modelled' else 'real'}"
            for half, kernel in (("KVM", life.kvm), ("VFIO", life.vfio))
        )
        _text(root, _x(column), y + 3 * _LINE, where, colour="#666666")
    y += 3 * _LINE + _PAD
    for number, step in enumerate(lives[0].steps):
        y += _row(root, y, step.name, [_cell(life, number) for life in lives])
    verdicts = []
    for life in lives:
        verdict = judge(life)
        colours = _GOOD if verdict.healthy else _BAD
        words = "every interrupt arrives" if verdict.healthy else "INTERRUPTS ARE LOST"
        text = f"{words}. {life.ioctls} ioctls. GSIs {gsis(life.steps[-1].gsis)}. {verdict.why}."
        verdicts.append([(line, colours) for line in _wrap(text)])
    y += _row(root, y, "verdict", verdicts)
    y += _PAD
    for symbol, meaning in LEGEND:
        y += _LINE
        _text(root, _MARGIN, y, f"{symbol:12} {meaning}", colour="#666666")
    height = y + _MARGIN
    root.set("height", str(height))
    root.set("viewBox", f"0 0 {width} {height}")
    background.set("height", str(height))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


_Line = tuple[str, "tuple[str, str] | None"]  # text, and (background, foreground) of what was seen


def _cell(life: Life, number: int) -> list[_Line]:
    step = life.steps[number]
    lines: list[_Line] = [
        (line, None) for call in calls(step.events, life.labels) for line in _wrap(call)
    ]
    if not lines and step.probe is None:
        lines = [(line, None) for line in _wrap(step.what)]
    seen = summary(step)
    if seen and step.probe is not None:
        bad = bool(step.probe.lost)
        colours = _BAD if bad else _NOTE if step.probe.strays or not step.probe.arrived else _GOOD
        lines += [(line, colours) for line in _wrap(seen)]
    return lines


def _row(root: ElementTree.Element, y: float, name: str, cells: Sequence[Sequence[_Line]]) -> float:
    """Draw a row; returns its height."""
    height = max(1, *map(len, cells)) * _LINE + 2 * _PAD
    _text(root, _MARGIN, y + _PAD + _FONT, name, weight="bold")
    for column, lines in enumerate(cells):
        x = _x(column)
        _box(root, x - _PAD, y, _COLUMN, height - 4, "#f7f7f9")
        for number, (line, colours) in enumerate(lines):
            baseline = y + _PAD + _FONT + number * _LINE
            colour = _COLOURS.get(line[0], "#333333")
            if colours is not None:
                top = baseline - _FONT - 1
                _box(root, x - 4, top, _COLUMN - 8, _LINE, colours[0])
                colour = colours[1]
            _text(root, x, baseline, line, colour=colour)
    return height


def _x(column: int) -> int:
    return _MARGIN + _LABELS + column * (_COLUMN + _GAP)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, int((_COLUMN - 2 * _PAD) / _CHARACTER)) or [""]


def _box(
    root: ElementTree.Element, x: float, y: float, width: float, height: float, colour: str
) -> ElementTree.Element:
    numbers = {"x": x, "y": y, "width": width, "height": height, "rx": 3}
    attributes = {name: f"{value:g}" for name, value in numbers.items()}
    return ElementTree.SubElement(root, "rect", {**attributes, "fill": colour})


def _text(
    root: ElementTree.Element,
    x: float,
    y: float,
    text: str,
    *,
    colour: str = "#222222",
    size: int = _FONT,
    weight: str = "normal",
) -> None:
    attributes = {"x": f"{x:g}", "y": f"{y:g}", "fill": colour, "xml:space": "preserve"}
    if size != _FONT:
        attributes["font-size"] = str(size)
    if weight != "normal":
        attributes["font-weight"] = weight
    ElementTree.SubElement(root, "text", attributes).text = text
