"""round N, step annotate: which URL prefixes of the math-related hosts hold mathematics.

People decide this in section 2.1. `policy` stands in for them: a prefix is math or not by the share of its pages that was
collected, and between the two thresholds its sub-prefixes are judged. `file` takes decisions made elsewhere.

Artifact: `decisions.jsonl`, one object a line: prefix, decision (math, not_math), reason, who.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mathpipe.corpus import urls
from mathpipe.corpus.round_config import AnnotateConfig, AnnotateInputs
from mathpipe.pipeline import artifact, stage

MAX_DEPTH = 8
"""Folders of a path that a prefix may have."""


def run(config: AnnotateConfig, inputs: AnnotateInputs, out: Path) -> dict[str, Any]:
    """Write the decisions; returns counts and `annotation_source`."""
    domains = pq.read_table(inputs.domains / "domains.parquet")
    hosts = domains.filter(domains["is_math"])["host"]
    if config.source == "file":
        decisions = read_decisions(Path(config.file), set(hosts.to_pylist()))
    else:
        counts = count_prefixes(page_urls(inputs.pages, hosts), page_urls(inputs.selected, hosts))
        decisions = [decision for host in sorted(hosts.to_pylist()) for decision in judge(f"{host}/", counts, config)]
    partial = out / ".decisions.jsonl.tmp"
    partial.write_text("".join(json.dumps(decision, ensure_ascii=False) + "\n" for decision in decisions), encoding="utf-8")
    partial.replace(out / "decisions.jsonl")
    number = artifact.read_manifest(inputs.selected)["round"]
    verdicts = Counter(decision["decision"] for decision in decisions)
    return {"round": number, "annotation_source": config.source, "num_decisions": len(decisions), "num_math": verdicts["math"]}


def page_urls(path: Path, hosts: pa.ChunkedArray) -> list[str]:
    """URLs of an artifact's pages on the given hosts."""
    table = pa.concat_tables(artifact.read_columns(path, ["url", "host"]))
    return table.filter(pc.is_in(table["host"], hosts.combine_chunks()))["url"].to_pylist()


Counts = dict[str, tuple[int, int, list[str]]]
"""Prefix → (pages, collected pages, sub-prefixes in order)."""


def count_prefixes(all_urls: Iterable[str], collected_urls: Iterable[str]) -> Counts:
    """Pages and collected pages under every prefix."""
    pages: Counter[str] = Counter()
    collected: Counter[str] = Counter()
    below: dict[str, set[str]] = defaultdict(set)
    for url in all_urls:
        chain = urls.prefixes(url, MAX_DEPTH)
        pages.update(chain)
        for parent, child in zip(chain, chain[1:], strict=False):
            below[parent].add(child)
    for url in collected_urls:
        collected.update(urls.prefixes(url, MAX_DEPTH))
    return {prefix: (num, collected[prefix], sorted(below[prefix])) for prefix, num in pages.items()}


def judge(prefix: str, counts: Counts, config: AnnotateConfig) -> Iterator[dict[str, str]]:
    """The policy's decisions on a prefix and, where it is mixed, on those below it; the longest prefix of a page decides."""
    num_pages, num_collected, below = counts[prefix]
    frac = num_collected / num_pages
    reason = f"{num_collected} of {num_pages} pages collected"
    if frac >= config.accept_frac:
        yield {"prefix": prefix, "decision": "math", "reason": reason, "who": "policy"}
        return
    yield {"prefix": prefix, "decision": "not_math", "reason": reason, "who": "policy"}
    if frac > config.reject_frac:
        for child in below:
            if counts[child][0] >= config.min_pages:
                yield from judge(child, counts, config)


def read_decisions(file: Path, hosts: set[str]) -> list[dict[str, str]]:
    """Decisions on prefixes of the given hosts.

    Raises:
        ValueError: the file is missing, or a line is not a decision.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file (annotate.file); give a JSONL of decisions")
    decisions = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            decision = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{number}: not JSON: {error}") from None
        if not isinstance(decision, dict) or not {"prefix", "who"} <= set(decision) or decision.get("decision") not in ("math", "not_math"):
            raise ValueError(f"{file}:{number}: expected prefix, decision (math or not_math), reason, who; found {line[:100]!r}")
        if decision["prefix"].partition("/")[0] in hosts:
            decisions.append(decision)
    return decisions


if __name__ == "__main__":
    stage.main(run)
