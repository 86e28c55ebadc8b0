"""The report's sections on the models: pre-training, SFT and GRPO."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from mathpipe.eval.config import ReportConfig
from mathpipe.eval.markup import figures, folded, number, percent, table
from mathpipe.eval.published import GSM8K_MATH
from mathpipe.eval.report_source import Entry, Source, require, sample
from mathpipe.pipeline.artifact import read_manifest


def facts(values: dict[str, Any]) -> str:
    """The plain numbers of a manifest as one line."""
    counts = {key.removeprefix("num_").replace("_", " "): value for key, value in values.items() if key.startswith("num_")}
    told = " · ".join(f"{name} {number(value)}" for name, value in counts.items() if isinstance(value, int | float))
    return f'<p class="soft">{told}</p>' if told else ""


def pretraining(source: Source) -> str:
    """Sources with their epochs and held-out bits per byte, curves of the loss by source, speed."""
    entry = source["pretrain"]
    wanted = {
        "Loss, nats per token": {"training": "loss", "held out": "held_out_loss"},
        "Training loss by source": curves(entry, "loss"),
        "Bits per byte, held out": curves(entry, "bits_per_byte") or {"bits per byte": "bits_per_byte"},
        "Learning rate": {"learning rate": "lr"},
        "Gradient norm": {"norm": "grad_norm"},
        "Tokens per second": {"tokens/s": "tokens_per_s"},
        "Model FLOPs utilisation, % of the measured or stated peak": {"MFU": "mfu%"},
    }
    tokenizer, tokens = source["tokenizer"].manifest, source["tokens"].manifest
    return facts(tokenizer | tokens | entry.manifest) + _sources(entry, tokens) + figures(entry.plots(wanted))


def curves(entry: Entry, key: str) -> dict[str, str]:
    """Legend → key of metrics.jsonl, for the keys `key/<source>`."""
    return {name.partition("/")[2]: name for row in entry.metrics for name in row if name.startswith(f"{key}/")}


def _sources(entry: Entry, tokens: dict[str, Any]) -> str:
    """What was trained on; empty where there was nothing but the corpus."""
    held_out, epochs = entry.manifest.get("held_out") or {}, entry.manifest.get("epochs", {})
    rows = [
        [name, tokens.get("sources", {}).get(name, {}).get("train", {}).get("num_tokens"), seen,
         *(held_out.get(when, {}).get(f"bits_per_byte/{name}") for when in ("before", "after"))]
        for name, seen in epochs.items()
    ]  # fmt: skip
    return table(["source", "tokens", "epochs", "bits per byte before", "after"], rows) if len(rows) > 1 else ""


def sft(source: Source) -> str:
    """Examples by source and format, the packings, loss on answers."""
    entry = source["sft"]
    wanted = {
        "Loss on answers, nats per token": {"training": "loss"}, "Gradient norm": {"norm": "grad_norm"},
        "Tokens per second, padding not counted": {"tokens/s": "tokens_per_s"},
    }  # fmt: skip
    packings = [
        [name, made["num_rows"], percent(made["padding_frac"]), percent(made["too_long_frac"]), percent(made["lost_tokens_frac"])]
        for name, made in entry.manifest.get("packing", {}).items()
    ]
    packed = table(["packing", "rows", "padding", "examples too long", "tokens lost"], packings) if packings else ""
    return facts(entry.manifest) + _examples(source, entry) + packed + figures(entry.plots(wanted))


def _examples(source: Source, entry: Entry) -> str:
    """Counts of the examples stage, where its artifact is still there."""
    path, clean = source.made_from(entry, "examples"), source.made_from(entry, "clean")
    if path is None or clean is None:
        return ""
    made, removed = read_manifest(path), read_manifest(clean)["num_removed"]
    rows = [[row["source"], row["format"], row["language"], row["count"]] for row in made["examples"]]
    rejects = ", ".join(f"{row['source']}: {row['reason']} {number(row['count'])}" for row in made["rejects"])
    words = f"Left out: {rejects or 'none'}; {number(removed)} share text with a benchmark’s test problem."
    return table(["source", "format", "language", "examples"], rows) + f'<p class="soft">{words}</p>'


def grpo(source: Source, config: ReportConfig) -> str:
    """Held-out accuracy before and after, curves, completions."""
    entry = source["grpo"]
    sampled, greedy = require(entry, "held_out", "sampled"), require(entry, "held_out", "greedy")
    rows = [
        [kind, percent(v["before"]), percent(v["after"]), f"{100 * (v['after'] - v['before']):+.1f}".replace("-", "−"), v.get("p_value")]
        for kind, v in (("sampled, temperature 1", sampled), ("greedy", greedy))
    ]  # fmt: skip
    paper = ", ".join(f"{name} {a} → {b}" for name, a, b in zip(("GSM8K", "MATH"), GSM8K_MATH["sft"], GSM8K_MATH["grpo"], strict=True))
    wanted = {
        "Reward, mean of a step": {"reward": "reward"},
        "Held-out accuracy, %": {"sampled": "sampled_accuracy%", "greedy": "greedy_accuracy%"},
        "KL to the SFT model, nats per token": {"k3": "kl"},
        "Entropy, nats per token": {"entropy": "entropy"},
        "Groups of equal rewards": {"share": "zero_std_frac"},
        "Tokens per response": {"tokens": "response_tokens"},
        "Loss": {"loss": "loss"},
    }
    return (
        f"<p>Accuracy on {number(require(entry, 'held_out', 'n'))} problems that no training saw.</p>"
        + table(["decoding", "SFT", "GRPO", "points", "p (paired bootstrap)"], rows)
        + f'<p class="soft">The paper’s 7B, other problems: {paper} (chain of thought).</p>'
        + figures(entry.plots(wanted))
        + _completions(source, config)
    )


def _completions(source: Source, config: ReportConfig) -> str:
    files = sorted(source["grpo"].path.glob("completions/step-*.parquet"))
    if not files:
        return ""
    parts = []
    for when, file in (("first step", files[0]), ("last step", files[-1])):
        for row in sample(pq.read_table(file).to_pylist(), config.num_samples // 2, f"{config.seed} {when}"):
            title = f"{when} · reward {number(row['reward'])} · advantage {row['advantage']:+.2f} · {row['question'][:90]}"
            parts.append(folded(title, f"{row['question']}\n\n{row['completion']}"))
    return f"<h3>Completions, drawn at random</h3>{''.join(parts)}"
