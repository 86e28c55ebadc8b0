"""Tables that end a run in the terminal, from metrics.jsonl alone: the rounds of the corpus, the volumes of the sweep, the ablations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mathpipe.pipeline import stages
from mathpipe.pipeline.artifact import read_manifest, read_metrics
from mathpipe.pipeline.plan import Plan

Column = tuple[str, str, str]
"""Head, key of metrics.jsonl, format."""
ROUND_COLUMNS: tuple[Column, ...] = (
    ("round", "round", "d"), ("pages", "pages", ",d"), ("tokens", "tokens", ",d"), ("recall", "recall", ".3f"),
    ("precision", "precision", ".3f"), ("overlap", "overlap", ".3f"), ("F1", "held_out_f1", ".3f"),
    ("F1 out of domain", "out_of_domain_f1", ".3f"), ("ECE", "ece", ".3f"), ("math domains", "math_domains", ",d"),
    ("math prefixes", "math_prefixes", ",d"),
    ("positives", "num_positives", ",d"), ("negatives", "num_negatives", ",d"), ("new seeds", "new_seeds", ",d"),
)  # fmt: skip
VOLUME_COLUMNS: tuple[Column, ...] = (
    ("volume", "volume", "d"), ("pages", "pages", ",d"), ("tokens", "tokens", ",d"), ("lowest score", "lowest_score", ".3f"),
    ("epochs", "epochs", ".2f"),
    *((head, f"{kind} {key}", form) for kind in ("problems", "core pages", "wide pages")
      for head, key, form in ((f"{kind}, bits/byte", "bits_per_byte", ".4f"), ("to 1×", "difference", "+.4f"), ("± SE", "stderr", ".4f"))),
)  # fmt: skip


def closing(plan: Plan, targets: Sequence[str]) -> str:
    """What a run of `targets` ends with: the tables of the rounds and volumes that it was asked for."""
    wanted = set(targets)
    found = []
    if wanted & {"corpus", "corpus.report", *stages.ROUNDS}:
        found.append(rounds(plan))
    if "volumes" in wanted:
        found.append(volumes(plan))
    for name, comparison in stages.COMPARISONS.items():
        if f"ablate.{name}" in wanted:
            found.append({"arm": ablation, "rl": reinforcement}[comparison.family](plan, name))
    return "".join(f"{table}\n" for table in found)


def rounds(plan: Plan) -> str:
    """The finished rounds, a line each."""
    steps = [plan.steps[name] for name in stages.ROUNDS if (plan.steps[name].out / "manifest.json").exists()]
    return render(ROUND_COLUMNS, [line for step in steps for line in read_metrics(step.out)[-1:]])


def volumes(plan: Plan) -> str:
    """The volumes, and which has the lowest held-out loss."""
    out = plan.steps["volumes"].out
    facts = read_manifest(out)
    words = f"lowest loss on {facts['judged_on']}: volume {facts['best']}; bits per byte, SE of the difference to volume 1 over texts"
    return f"{render(VOLUME_COLUMNS, read_metrics(out))}\n{words}"


def ablation(plan: Plan, name: str) -> str:
    """The arms of a comparison, bits per byte with their standard errors over seeds."""
    out = plan.steps[f"ablate.{name}"].out
    facts = read_manifest(out)
    columns: list[Column] = [("arm", "arm", "s"), ("tokens", "tokens", ",d")]
    for kind in facts["texts"]:
        columns += [(kind, f"{kind} bits_per_byte", ".4f"), ("± SE", f"{kind} stderr", ".4f")]
        columns += [(f"to {facts['arms'][0]}", f"{kind} difference", "+.4f")]
    words = f"bits per byte of held-out texts, lower is better; SE over {facts['num_seeds']} seeds"
    words += "; `mathpipe report` sets it beside the paper's"
    return f"{render(columns, read_metrics(out))}\n{words}"


def reinforcement(plan: Plan, name: str) -> str:
    """The arms of a comparison of methods: accuracies with their standard errors over seeds, diversity, memory and time."""
    out = plan.steps[f"ablate.{name}"].out
    facts = read_manifest(out)
    columns: list[Column] = [("arm", "arm", "s")]
    for kind in ("sampled", "greedy"):
        columns += [(kind, kind, ".3f"), ("± SE", f"{kind} stderr", ".3f"), (f"to {facts['arms'][0]}", f"{kind} difference", "+.3f")]
        columns += [("± SE", f"{kind} difference stderr", ".3f")]
    columns += [("distinct answers", "distinct_frac", ".3f"), ("equal groups", "zero_std_frac", ".3f"), ("KL", "kl", ".4f")]
    columns += [("GB", "peak_memory_gb", ".2f"), ("s a step", "step_s", ".2f")]
    words = f"held-out accuracy on {facts['num_questions']} questions, SE over {facts['num_seeds']} seeds; `mathpipe report` draws curves"
    return f"{render(columns, read_metrics(out))}\n{words}"


def render(columns: Sequence[Column], rows: Sequence[dict[str, Any]]) -> str:
    """Rows as aligned text; columns that no row has are left out, a missing value is a dash.

    >>> print(render([("a", "x", ",d"), ("b", "y", ".2f")], [{"x": 1200, "y": None}, {"x": 7, "y": 0.5}]))
        a     b
    1,200     –
        7  0.50
    """
    shown = [column for column in columns if any(row.get(column[1]) is not None for row in rows)]
    cells = [[head for head, _, _ in shown]]
    cells += [["–" if row.get(key) is None else format(row[key], form) for _, key, form in shown] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
