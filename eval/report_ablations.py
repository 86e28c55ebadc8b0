"""The report's section on the pre-training comparisons: our arms with error bars, the paper's table below them."""

from __future__ import annotations

from mathpipe.eval.markup import figures, number, plot, table
from mathpipe.eval.published import ABLATION_COLUMNS, ABLATIONS, ARXIV, ARXIV_COLUMNS
from mathpipe.eval.report_source import Entry, Source, require

TITLES = {
    "code_first": ("Code before mathematics?", "code-first"),
    "mixing": ("Two stages or one mixture?", "mixing"),
    "arxiv": ("Does arXiv help?", "arxiv"),
}
"""Input of the report → (heading, what is typed)."""


def ablations(source: Source) -> str:
    """Every comparison that was run, and how to run the others."""
    done = [part for name, (title, _) in TITLES.items() if name in source for part in (f"<h3>{title}</h3>", comparison(source[name], name))]
    missing = [f"<code>mathpipe ablate {typed}</code>" for name, (_, typed) in TITLES.items() if name not in source]
    return "".join(done) + (f'<p class="soft">Not run with these settings: {", ".join(missing)}.</p>' if missing else "")


def comparison(entry: Entry, name: str) -> str:
    """Our table, the differences with error bars, the paper's table."""
    arms, seeds, counts = (require(entry, key) for key in ("arms", "num_seeds", "texts"))
    rows = [
        [row["arm"], row["tokens"], *(cell(row[f"{kind} bits_per_byte"], row[f"{kind} stderr"]) for kind in counts)]
        for row in entry.metrics
    ]
    texts = ", ".join(f"{number(n)} {kind}" for kind, n in counts.items())
    words = (
        f"Bits per byte of held-out texts ({texts}), lower is better; mean ± standard error "
        f"over {seeds} seeds. In the figure: difference to {arms[0]}, seed by seed; with three seeds one "
        "below about four of its standard errors is not settled."
    )
    others = entry.metrics[1:]
    places = list(range(len(counts)))
    series = {
        row["arm"]: ([place + 0.3 * shift for place in places], [row[f"{kind} difference"] for kind in counts])
        for shift, row in enumerate(others)
    }
    errors = {row["arm"]: [row[f"{kind} difference stderr"] for kind in counts] for row in others}
    figure = plot(f"Difference to {arms[0]}", series, "", "bits per byte", errors=errors, ticks=list(counts))
    paper, columns = (ARXIV, ARXIV_COLUMNS) if name == "arxiv" else (ABLATIONS, ABLATION_COLUMNS)
    published = [[arm, paper[arm][0], *paper[arm][1]] for arm in arms if arm in paper]
    return (
        f"<p>{words}</p>{table(['arm', 'tokens', *counts], rows)}{figures([figure])}"
        f'<p class="soft">The paper, 1.3B parameters, per cent (other sizes and measures than ours; the ranking is what compares):</p>'
        f"{table(['arm', 'in the paper', *columns], published)}"
    )


def cell(value: float, error: float) -> str:
    """`3.6616 ± 0.0027`."""
    return f"{value:.4f} ± {error:.4f}"
