"""How good a classifier is, and its model card."""

from __future__ import annotations

from typing import Any

import numpy as np

from mathpipe.corpus.round_config import ClassifierConfig

NUM_BINS = 10


def measure(is_math_N: np.ndarray, p_N: np.ndarray) -> dict[str, Any]:
    """Precision, recall and F1 at P(math) >= 0.5, the reliability table, and the expected calibration error (ECE): the mean of
    |share of positives - mean P| over bins of P, weighted by their examples.

    >>> found = measure(np.array([True, False, True]), np.array([.95, .85, .95]))
    >>> found["recall"], round(found["f1"], 3), round(found["ece"], 3)
    (1.0, 0.8, 0.317)
    """
    if not len(p_N):
        return {"n": 0}
    found_N = p_N >= 0.5
    hits, num_found, num_true = int((is_math_N & found_N).sum()), int(found_N.sum()), int(is_math_N.sum())
    bin_N = np.minimum((p_N * NUM_BINS).astype(int), NUM_BINS - 1)
    table = []
    for number in range(NUM_BINS):
        inside = bin_N == number
        if inside.any():
            p, positive = float(p_N[inside].mean()), float(is_math_N[inside].mean())
            table.append({"from": number / NUM_BINS, "n": int(inside.sum()), "mean_p": p, "positive_frac": positive})
    return {
        "n": len(p_N), "precision": hits / max(1, num_found), "recall": hits / max(1, num_true),
        "f1": 2 * hits / max(1, num_found + num_true),
        "ece": sum(row["n"] * abs(row["positive_frac"] - row["mean_p"]) for row in table) / len(p_N), "reliability": table,
    }  # fmt: skip


def model_card(config: ClassifierConfig, facts: dict[str, Any]) -> str:
    """The README of a classifier: data, hyper-parameters, figures, use."""
    origin = config.seed_path or config.seed_dataset or f"pages of {', '.join(config.seed_hosts)}"
    more = f" and {facts['num_seeds']:,} pages that people or a policy found in rounds before" if facts["round"] > 1 else ""
    return f"""---
library_name: fasttext
tags: [text-classification, mathematics]
---
# Is a web page mathematics? Classifier of round {facts["round"]}

A fastText classifier of DeepSeekMath's corpus loop (arXiv 2402.03300, section 2.1). It ranks the pages of one crawl; the best
are collected. Scores are meant as ranks within that crawl, not as probabilities for other text.

## Data
- {facts["num_positives"]:,} positives: {origin}{more}.
- {facts["num_negatives"]:,} negatives: pages of the crawl ("{config.negatives}"). No person has looked at them: mathematics among
  them counts as wrong below.

## Hyper-parameters
dim {config.dim}, lr {config.lr}, wordNgrams {config.word_ngrams}, minCount {config.min_count}, epoch {config.epoch},
bucket {config.bucket}, seed {config.seed}, one thread. Text: form "{config.text}", the first {config.max_words} words.

## Figures
| examples | n | precision | recall | F1 | ECE |
|---|---|---|---|---|---|
{_row("held out, of the same hosts", facts["held_out"])}
{_row("of hosts that a second model was trained without", facts["out_of_domain"])}

Reliability on the held-out examples:

| P(math) from | examples | mean P(math) | share of positives |
|---|---|---|---|
{_reliability(facts["held_out"])}

## Use
    import fasttext
    from mathpipe.corpus.classifier import classifier_text, probabilities
    model = fasttext.load_model("model.bin")
    probabilities(model, [classifier_text(page, {config.max_words}, "{config.text}")])  # P(math)
"""


def _row(name: str, found: dict[str, Any]) -> str:
    if not found["n"]:
        return f"| {name} | 0 | | | | |"
    return f"| {name} | {found['n']:,} | " + " | ".join(f"{found[key]:.3f}" for key in ("precision", "recall", "f1", "ece")) + " |"


def _reliability(found: dict[str, Any]) -> str:
    rows = found.get("reliability", [])
    return "\n".join(f"| {row['from']:.1f} | {row['n']} | {row['mean_p']:.3f} | {row['positive_frac']:.3f} |" for row in rows)
