"""The report's sections on the corpus: pages, rounds, domains, classifier, decontamination, the volume sweep, samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mathpipe.eval.config import ReportConfig
from mathpipe.eval.markup import Raw, figures, folded, number, percent, plot, table, tag
from mathpipe.eval.published import CORPUS, ROUND_4_OVERLAP
from mathpipe.eval.report_source import Entry, Source, require
from mathpipe.pipeline.artifact import ContractError, parquet_files, read_lines

MAX_EXCERPT_CHARS = 1200
NUM_DOMAINS = 15
NUM_PREFIXES = 3
NUM_REJECTS = 8
Columns = Sequence[tuple[str, str, Callable[[Any], Any]]]
"""Head, key, how a value is shown."""


def plain(value: Any) -> Any:
    """The value as it is."""
    return value


COLLECTED: Columns = (
    ("round", "round", plain), ("pages", "pages", plain), ("tokens", "tokens", plain), ("recall", "recall", percent),
    ("precision", "precision", percent), ("overlap with the round before", "overlap", percent),
)  # fmt: skip
SEEDS: Columns = (
    ("round", "round", plain), ("positives", "num_positives", plain), ("negatives", "num_negatives", plain), ("F1", "held_out_f1", plain),
    ("F1 out of domain", "out_of_domain_f1", plain), ("ECE", "ece", plain),
    ("math domains", "math_domains", plain), ("math prefixes", "math_prefixes", plain), ("new seeds", "new_seeds", plain),
    ("of these linked", "linked_seeds", plain),
)  # fmt: skip


def known_columns(columns: Columns, rows: Sequence[dict[str, Any]]) -> str:
    """A table without the columns that no row has a value for."""
    shown = [column for column in columns if any(row.get(column[1]) is not None for row in rows)]
    return table([head for head, _, _ in shown], [[show(row.get(key)) for _, key, show in shown] for row in rows])


def pages(source: Source) -> str:
    """The crawl, what extraction and deduplication left, rejects by reason."""
    crawl, made = source["crawl"].manifest, source["pages"].manifest
    rejected = made.get("num_rejects", {})
    kept, dropped = made.get("num_pages", 0), sum(rejected.values())
    intro = (
        f"<p>Crawl source “{crawl.get('source', '?')}”. Of {number(kept + dropped)} records {number(kept)} pages of "
        f"{number(made.get('num_hosts', 0))} hosts remain after extraction and deduplication.</p>"
    )
    rows = [[reason, count, percent(count / (kept + dropped))] for reason, count in sorted(rejected.items(), key=lambda item: -item[1])]
    return intro + (table(["rejected because", "records", "share"], rows) if rows else "")


def round_entries(source: Source) -> list[Entry]:
    """The rounds, the first one first."""
    return [source[f"round{number}"] for number in range(1, 10) if f"round{number}" in source]


def round_lines(source: Source) -> list[dict[str, Any]]:
    """The figures of every round.

    Raises:
        ContractError: a round has left none.
    """
    for entry in round_entries(source):
        if not entry.metrics:
            raise ContractError(f"{entry.path / 'metrics.jsonl'}: no line with the round's figures; run stage {entry.name} again")
    return [entry.metrics[-1] for entry in round_entries(source)]


def rounds(source: Source) -> str:
    """The table by round and how the corpus grows."""
    lines = round_lines(source)
    paper = (
        f"The paper ends with {number(CORPUS['pages'])} pages and {number(CORPUS['tokens'])} tokens; "
        f"“nearly {100 * ROUND_4_OVERLAP:.0f} %” of round 4 had been collected in round 3."
    )
    if any(line.get("recall") is not None for line in lines):
        paper += " Recall and precision count pages, against the crawl’s truth labels; nothing but these figures knows them."
    stopped = next((line["stopped"] for line in lines if line.get("stopped")), None)
    if stopped is not None:
        paper += f" The loop stopped after round {stopped}: later rounds pass its result on."
    numbers = [line["round"] for line in lines]
    collected = [line.get("pages", 0) for line in lines]
    known = [(line.get("overlap") or 0) * line.get("pages", 0) for line in lines]
    shares = {
        key: [(line["round"], 100 * line[key]) for line in lines if line.get(key) is not None] for key in ("recall", "precision", "overlap")
    }
    curves = {key: tuple(zip(*points, strict=True)) for key, points in shares.items() if points}
    growth = {"new": (numbers, collected), "collected in the round before": (numbers, known)}  # the second is drawn over the first
    seeds = {"seeds": (numbers, [line.get("seeds", 0) for line in lines])}
    parts = [plot("Pages collected", growth, "round", bars=True), plot("Seeds for the next round", seeds, "round", bars=True)]
    parts += [plot("Recall, precision and overlap, %", curves, "round", "%")] if curves else []  # type: ignore[arg-type]
    tables = (
        f'{known_columns(COLLECTED, lines)}<p class="soft">{paper}</p><h3>Classifier, domains and seeds</h3>{known_columns(SEEDS, lines)}'
    )
    return tables + figures(parts)


def domains(source: Source) -> str:
    """The domains with most collected pages in the last round, and what was decided on their prefixes."""
    last = round_entries(source)[-1]
    judged, annotated = source.made_from(last, "domains"), source.made_from(last, "annotations")
    if judged is None:
        return "<p>The last round’s domains have been removed.</p>"
    rows = pq.read_table(judged / "domains.parquet").to_pylist()
    decisions = read_lines(annotated / "decisions.jsonl") if annotated else []
    body = [
        [row["host"], row["num_pages"], row["num_collected"], percent(row["collected_frac"]), row["mean_score"],
         "yes" if row["is_math"] else "no", verdicts([d for d in decisions if is_below(d["prefix"], row["host"])])]
        for row in rows[:NUM_DOMAINS]
    ]  # fmt: skip
    head = ["domain", "pages", "collected", "share", "mean P(math)", "math-related", "annotated prefixes"]
    more = (
        f"Round {last.metrics[-1]['round']}: the {len(body)} domains of {number(len(rows))} with most collected pages. A domain is "
        "math-related when more than 10 % of its pages were collected; the longest annotated prefix of a page decides."
    )
    return f'<p class="soft">{more}</p>{table(head, body, wide=[6])}'


def is_below(prefix: str, domain: str) -> bool:
    """Whether a URL prefix lies in a domain: on the host itself or, where domains are registered ones, on one of its hosts.

    >>> is_below("docs.a.org/x/", "a.org"), is_below("aa.org/", "a.org")
    (True, False)
    """
    return f".{prefix.partition('/')[0]}".endswith(f".{domain}")


def verdicts(decisions: Sequence[dict[str, str]]) -> str:
    """The decisions on a domain's prefixes: `math: /x/, /y/ and 3 more; not math: /`."""
    parts = []
    for kind, words in (("math", "math"), ("not_math", "not math")):
        of_kind = ["/" + d["prefix"].partition("/")[2] for d in decisions if d["decision"] == kind]
        more = f" and {len(of_kind) - NUM_PREFIXES} more" if len(of_kind) > NUM_PREFIXES else ""
        if of_kind:
            parts.append(f"{words}: {', '.join(of_kind[:NUM_PREFIXES])}{more}")
    return "; ".join(parts)


def classifier(source: Source) -> str:
    """How the scores of all pages are spread, and how far the last round's are probabilities."""
    spread: dict[str, Any] = {}
    reliability: dict[str, Any] = {}
    for entry in round_entries(source):
        selected, trained = (source.made_from(entry, name) for name in ("selected", "classifier"))
        histogram = Entry(selected).manifest.get("score_histogram") if selected else None
        if histogram:
            edges, counts = histogram["edges"], histogram["counts"]
            middles = [(low + high) / 2 for low, high in zip(edges, edges[1:], strict=False)]
            spread[entry.name] = (middles, [max(count, 0.5) for count in counts])  # an empty bin has a place on the logarithmic axis
        bins = Entry(trained).manifest.get("held_out", {}).get("reliability", []) if trained else []
        if bins:
            reliability = {entry.name: ([row["mean_p"] for row in bins], [row["positive_frac"] for row in bins])}  # the last one is shown
    if not spread and not reliability:
        return "<p>No score histograms: the selections have been removed.</p>"
    parts = [plot("Pages per bin of the score", spread, "P(math)", log_y=True)] if spread else []
    if reliability:
        exact = {"exact": ([0.0, 1.0], [0.0, 1.0])}
        parts.append(plot("Share of positives among held-out examples", reliability | exact, "P(math)"))
    words = "P(math) is the classifier’s score. Pages are collected from the top until the round’s tokens are full."
    return f"<p>{words}</p>{figures(parts)}"


def decontamination(source: Source) -> str:
    """What the 10-gram rule removed, by benchmark, and examples with their gram."""
    entry = source["corpus"]
    removed, kept = require(entry, "num_removed"), require(entry, "num_pages")
    hits, texts = entry.manifest.get("removed_by_benchmark", {}), entry.manifest.get("benchmark_texts", {})
    stand_ins = {name for name, suite in require(source["benchmarks"], "suites").items() if suite["stand_in"]}
    names = sorted(set(hits) | set(texts))
    body = [[f"{name} (stand-in)" if name in stand_ins else name, texts.get(name), hits.get(name, 0)] for name in names]
    intro = (
        f"<p>{number(removed)} of {number(removed + kept)} selected pages carried a benchmark text and were removed: a 10-gram that "
        f"occurs in a benchmark, or a whole benchmark question of 3 to 9 grams. Benchmarks: {require(source['benchmarks'], 'source')}.</p>"
    )
    columns = ["url", "benchmark", "item", "gram"]
    files = sorted((entry.path / "rejects").glob("*.parquet"))
    rejects = list(islice((row for file in files for row in pq.read_table(file, columns=columns).to_pylist()), NUM_REJECTS))
    examples = [[row["url"], row["benchmark"], row["item"], row["gram"]] for row in rejects]
    shown = f"<h3>Examples</h3>{table(['page', 'benchmark', 'item', 'gram'], examples, wide=[0, 3])}" if examples else ""
    return intro + (table(["benchmark", "texts", "matches"], body) if body else "") + shown


def volume(source: Source) -> str:
    """The table of the volume sweep."""
    if "volumes" not in source:
        return "<p>The volume sweep has not been run with these settings: <code>mathpipe sweep-volume</code>.</p>"
    entry = source["volumes"]
    best, judged_on, counts = (require(entry, key) for key in ("best", "judged_on", "texts"))
    names = [Raw(f"{row['volume']}× {tag('best')}") if row["volume"] == best else f"{row['volume']}×" for row in entry.metrics]
    sizes = [
        [name, row["pages"], row["tokens"], row["lowest_score"], row["epochs"]] for name, row in zip(names, entry.metrics, strict=True)
    ]
    losses = [[name, *(loss(row, kind) for kind in counts)] for name, row in zip(names, entry.metrics, strict=True)]
    words = (
        "A small model trained on each volume of round 1’s ranking, all with the same number of tokens. Below: bits per byte (difference "
        f"to 1× ± standard error) of held-out texts; lower is better, and the lowest on {judged_on} is marked. Standard errors are over "
        f"{', '.join(f'{n} {kind}' for kind, n in counts.items())}; they say nothing about another training run. The paper "
        "compared 40, 80, 120 and 160 billion tokens and kept 40."
    )
    curve = {kind: ([row["volume"] for row in entry.metrics], [row[f"{kind} difference"] for row in entry.metrics]) for kind in counts}
    tables = table(["volume", "pages", "tokens", "lowest score", "epochs"], sizes) + table(["volume", *counts], losses)
    return f"<p>{words}</p>{tables}{figures([plot('Bits per byte, difference to 1×', curve, 'volume')])}"


def loss(row: dict[str, Any], kind: str) -> str:
    """`3.6616 (−0.0819 ± 0.0027)`: bits per byte, the difference to volume 1 and its standard error, where it has one."""
    error = row[f"{kind} stderr"]
    difference = f"{row[f'{kind} difference']:+.4f}".replace("-", "−")
    return f"{row[f'{kind} bits_per_byte']:.4f} ({difference}{f' ± {error:.4f}' if error is not None else ''})"


def samples(source: Source, config: ReportConfig) -> str:
    """Pages of the corpus, drawn at random from at most `num_samples` of its files, one file in memory at a time."""
    rng, files = random.Random(config.seed), parquet_files(source["corpus"].path)
    drawn: list[dict[str, Any]] = []
    for file in rng.sample(files, min(config.num_samples, len(files))):
        rows = pq.read_table(file, columns=["url", "text", "score"])
        wanted = min(-(-config.num_samples // len(files)), config.num_samples - len(drawn), len(rows))
        drawn += rows.take(pa.array(rng.sample(range(len(rows)), wanted), pa.int64())).to_pylist()
    return "".join(folded(f"{row['url']} · P(math) {row['score']:.3f}", excerpt(row["text"])) for row in drawn)


def excerpt(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= MAX_EXCERPT_CHARS else text[:MAX_EXCERPT_CHARS].rstrip() + " …"
