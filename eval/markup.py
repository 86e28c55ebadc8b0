"""HTML of the report: a page, sections, tables, figures as inline SVG that follow the page's light or dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from mathpipe.eval.report_style import STYLE

Series = tuple[Sequence[float], Sequence[float]]
INK = "#010203"
"""Stands for the page's text colour while matplotlib draws."""
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#ec4899")


class Raw(str):
    """Text that is HTML already."""


def text(value: Any) -> str:
    """A cell's HTML: numbers formatted, None as a dash, the rest escaped."""
    if isinstance(value, Raw):
        return value
    if value is None:
        return "–"
    return escape(number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value))


def number(value: float) -> str:
    """A number for people.

    >>> number(35500), number(0.98214), number(3.0), number(0.00012), number(12345.6)
    ('35,500', '0.982', '3', '1.2e-04', '12,346')
    """
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 1 else f"{value:.3f}"


def percent(value: float | None, digits: int = 1) -> str | None:
    """A share as per cent.

    >>> percent(0.2512)
    '25.1 %'
    """
    return None if value is None else f"{100 * value:.{digits}f} %"


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(5.21), duration(75), duration(7265)
    ('5.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min {int(seconds % 60)} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(num_bytes: float) -> str:
    """Bytes for people.

    >>> size(238182400)
    '238 MB'
    """
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], wide: Sequence[int] = ()) -> str:
    """A table; a column is set right when its cells are numbers or start like one."""
    rows = [list(row) for row in rows]
    is_number = [bool(rows) and all(_numeric(row[i]) for row in rows) for i in range(len(head))]
    classes = [' class="n"' if is_number[i] else ' class="wide"' if i in wide else "" for i in range(len(head))]
    top = "".join(f"<th{c}>{escape(h)}</th>" for h, c in zip(head, classes, strict=True))
    body = "".join("<tr>" + "".join(f"<td{c}>{text(cell)}</td>" for cell, c in zip(row, classes, strict=True)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _numeric(cell: Any) -> bool:
    return cell is None or isinstance(cell, int | float) or bool(re.match(r"[+−-]?[\d.]", str(cell)))


def tag(words: str) -> Raw:
    """A small label."""
    return Raw(f'<span class="tag">{escape(words)}</span>')


def folded(title: str, content: str) -> str:
    """Text behind a title that opens on a click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(content)}</pre></details>"


def cards(values: dict[str, str]) -> str:
    """The headline figures."""
    shown = (f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in values.items())
    return f'<div class="cards">{"".join(shown)}</div>'


def figures(parts: Sequence[str]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="figures">{"".join(parts)}</div>' if parts else ""


def plot(
    title: str, series: dict[str, Series], x_label: str, y_label: str = "", bars: bool = False, log_y: bool = False,
    errors: dict[str, Sequence[float]] | None = None, ticks: Sequence[str] = (),
) -> str:  # fmt: skip
    """A figure with one line (or group of bars) per series, name → (x, y).

    Args:
        errors: half lengths of error bars, by series; points with bars are not joined by a line.
        ticks: names of x = 0, 1, 2, …
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "mathpipe", "font.size": 11, "font.family": "sans-serif"}
    style |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
        for index, (name, (x, y)) in enumerate(series.items()):
            colour = COLOURS[index % len(COLOURS)]
            if errors:
                axes.errorbar(x, y, errors[name], fmt="o", color=colour, label=name, capsize=4, markersize=4.5)
            elif bars:
                axes.bar(x, y, width=0.6, color=colour, label=name)
            else:
                axes.plot(x, y, color=colour, linewidth=1.8, label=name, marker="o" if len(x) <= 12 else None, markersize=4.5)
        if log_y:
            axes.set_yscale("log")
        if bars or x_label in ("round", "volume"):
            axes.set_xticks(sorted({int(value) for x, _ in series.values() for value in x}))
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        axes.grid(axis="y", color=INK, alpha=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=10)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def page(title: str, lead: str, sections: dict[str, str]) -> str:
    """The whole document; `sections` is heading → HTML."""
    ids = {name: re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in sections}
    links = "".join(f'<a href="#{ids[name]}">{escape(name)}</a>' for name in sections)
    body = "".join(f'<section><h2 id="{ids[name]}">{escape(name)}</h2>{content}</section>' for name, content in sections.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<div class="layout"><nav>{links}</nav><main><h1>{escape(title)}</h1>{lead}{body}</main></div></body></html>\n'
    )
