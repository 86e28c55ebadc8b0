"""The report's section on the methods of reinforcement: figure 5 redrawn, GRPO beside PPO, what keeps groups diverse."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import pyarrow.parquet as pq

from mathpipe.eval.markup import figures, number, percent, plot, table
from mathpipe.eval.published import BY_RULE, FIGURE_5
from mathpipe.eval.report_source import Entry, Source, require

TITLES = {
    "figure5": "Which method learns most? (figure 5)",
    "supervision": "Outcome or process supervision?",
    "groups": "What keeps groups diverse?",
}
"""Input of the report, and what is typed, → heading."""
ACCURACIES = ("sampled", "greedy")
SHARES = {"distinct_frac": "distinct answers in a group", "zero_std_frac": "groups of equal rewards"}
PARTS = ("sample_s", "reward_s", "reference_s", "update_s", "sync_s")


def methods(source: Source) -> str:
    """Every comparison that was run, and how to run the others."""
    done = [part for name, title in TITLES.items() if name in source for part in (f"<h3>{title}</h3>", comparison(source[name], name))]
    missing = [f"<code>mathpipe ablate {name}</code>" for name in TITLES if name not in source]
    return "".join(done) + (f'<p class="soft">Not run with these settings: {", ".join(missing)}.</p>' if missing else "")


def comparison(entry: Entry, name: str) -> str:
    """Accuracies with their spread over seeds, curves, and what the comparison is about."""
    arms, seeds, questions = (require(entry, key) for key in ("arms", "num_seeds", "num_questions"))
    shares = SHARES if name == "groups" else {}
    head = ["arm", *(words for kind in ACCURACIES for words in (f"{kind}, %", f"to {arms[0]}")), *shares.values()]
    rows = []
    for row in entry.metrics:
        accuracies = [points(row, f"{kind}{what}", signed=bool(what)) for kind in ACCURACIES for what in ("", " difference")]
        rows.append([row["arm"], *accuracies, *(percent(row.get(key)) for key in shares)])
    before = ", ".join(f"{kind} {percent(entry.metrics[0][f'{kind}_before'])}" for kind in ACCURACIES)
    words = (
        f"Held-out accuracy on {number(questions)} questions after the last step, mean ± standard error over {seeds} seeds; before: "
        f"{before}. Differences seed by seed, in points."
    )
    wanted = {"greedy_accuracy": "Held-out accuracy, greedy, %"} | {key: f"{title}, %" for key, title in shares.items()}
    drawn = figures([curves(entry, key, title) for key, title in wanted.items()])
    below = ("" if name == "groups" else order(entry)) + (costs(entry) if name == "figure5" else "")
    return f"<p>{words}</p>{table(head, rows)}{drawn}{below}"


def points(row: dict[str, Any], key: str, signed: bool = False) -> str | None:
    """A share and its standard error in points.

    >>> points({"a": 0.512, "a stderr": 0.0123}, "a"), points({"a": -0.01, "a stderr": None}, "a", signed=True)
    ('51.2 ± 1.2', '−1.0')
    """
    if key not in row:
        return None
    value = f"{100 * row[key]:{'+' if signed else ''}.1f}".replace("-", "−")
    error = row[f"{key} stderr"]
    return value if error is None else f"{value} ± {100 * error:.1f}"


def curves(entry: Entry, key: str, title: str) -> str:
    """Mean over seeds by step, a line an arm."""
    values: dict[str, dict[int, list[float]]] = {arm: {} for arm in require(entry, "arms")}
    for row in pq.read_table(entry.file("curves.parquet"), columns=["arm", "step", key]).to_pylist():
        if row[key] is not None:
            values[row["arm"]].setdefault(row["step"], []).append(100 * row[key])
    series = {arm: (sorted(steps), [statistics.fmean(steps[step]) for step in sorted(steps)]) for arm, steps in values.items()}
    return plot(title, series, "step", "%")


def order(entry: Entry) -> str:
    """Each method of the paper's order beside the next, with the difference of their seeds."""
    values = {row["arm"]: row["sampled values"] for row in entry.metrics}
    rows = []
    for names in (FIGURE_5, BY_RULE):
        for lower, higher in itertools.pairwise(arm for arm in names if arm in values):
            difference = [b - a for a, b in zip(values[lower], values[higher], strict=True)]
            error = statistics.stdev(difference) / len(difference) ** 0.5 if len(difference) > 1 else None
            found = {"x": statistics.fmean(difference), "x stderr": error}
            rows.append([f"{names[lower]} < {names[higher]}", points(found, "x", signed=True)])
    words = "The paper’s order (Instruct 1.3B), and by how many points of sampled accuracy the second is above the first here:"
    note = "With three seeds a difference below about four of its standard errors is not settled, with five below about three."
    return f'<p class="soft">{words}</p>{table(["in the paper", "here"], rows)}<p class="soft">{note}</p>'


def costs(entry: Entry) -> str:
    """GRPO against PPO, which it replaces: accuracy, memory, time of a step and where it goes."""
    rows = [row for row in entry.metrics if row["arm"] in ("ppo", "grpo_os", "grpo_ps")]
    body = [
        [row["arm"], points(row, "sampled"), *(f"{row[key]:.3g}" if key in row else None for key in ("peak_memory_gb", "step_s", *PARTS))]
        for row in rows
    ]
    head = ["", "sampled, %", "peak memory, GB", "step, s", *(part.removesuffix("_s") for part in PARTS)]
    words = (
        "GRPO against PPO, whose value model is trained beside the policy and in the first explorations (value_warmup_steps) alone: as "
        "many samples and explorations each; medians of a step, memory of the first process."
    )
    return f"<p>{words}</p>{table(head, body)}"
