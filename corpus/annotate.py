"""round N, step annotate: which URL prefixes of the math-related domains hold mathematics.

People decide this in section 2.1. Three sources give decisions, one object a line: prefix (host and folders, ending in `/`),
decision (math, not_math), reason, who; the longest decided prefix of a page counts.
- `queue`: people. The stage writes `questions.jsonl` (a line for each host: prefix, num_pages, num_collected, examples) and
  waits, that is ends with a line saying so, until `file` holds a decision on that prefix or below it for each of them. A queue
  exports to `file` after every round; the artifact keeps what this round was decided by.
- `file`: decisions made elsewhere, on any of these hosts.
- `policy` stands in for people: a prefix is math or not by the share of its pages that was collected, and between the two
  thresholds its sub-prefixes are judged.

Artifact: `decisions.jsonl`, and `questions.jsonl` of a queue. Memory goes with the prefixes on math-related hosts.
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
    hosts = pq.read_table(inputs.domains / "math_hosts.parquet")["host"].combine_chunks()
    if config.source == "file":
        decisions = read_decisions(Path(config.file), hosts)
    else:
        counts = count_prefixes(page_urls(inputs.pages, hosts), page_urls(inputs.selected, hosts))
        roots = sorted(prefix for prefix in counts if prefix.count("/") == 1)
        if config.source == "queue":
            write_lines(out / "questions.jsonl", ask(roots, counts, pq.read_table(inputs.domains / "domains.parquet")))
            decisions = read_decisions(Path(config.file), hosts) if Path(config.file).is_file() else []
            require_answers(config, roots, decisions, out / "questions.jsonl")
        else:
            decisions = [decision for root in roots for decision in judge(root, counts, config)]
    write_lines(out / "decisions.jsonl", decisions)
    number = artifact.read_manifest(inputs.selected)["round"]
    verdicts = Counter(decision["decision"] for decision in decisions)
    return {"round": number, "annotation_source": config.source, "num_decisions": len(decisions), "num_math": verdicts["math"]}


def write_lines(file: Path, values: Iterable[dict[str, Any]]) -> None:
    """JSON lines, atomically."""
    partial = file.with_name(f".{file.name}.tmp")
    partial.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    partial.replace(file)


def page_urls(path: Path, hosts: pa.Array) -> Iterator[str]:
    """URLs of an artifact's pages on the given hosts."""
    for table in artifact.read_columns(path, ["url", "host"]):
        yield from table.filter(pc.is_in(table["host"], hosts))["url"].to_pylist()


def ask(roots: Iterable[str], counts: Counts, domains: pa.Table) -> Iterator[dict[str, Any]]:
    """What a queue shows people of each host."""
    examples = dict(zip(domains["host"].to_pylist(), domains["examples"].to_pylist(), strict=True))
    for root in roots:
        num_pages, num_collected, _ = counts[root]
        yield {"prefix": root, "num_pages": num_pages, "num_collected": num_collected, "examples": examples.get(root[:-1], [])}


def require_answers(config: AnnotateConfig, roots: Iterable[str], decisions: Iterable[dict[str, str]], questions: Path) -> None:
    """Raise ValueError while a host has no decision."""
    decided = {decision["prefix"].partition("/")[0] + "/" for decision in decisions}
    waiting = [root for root in roots if root not in decided]
    if waiting:
        wanted = f"decide on the prefixes in {questions}, export the decisions to {config.file} and run the same command again"
        raise ValueError(f"{len(waiting)} hosts wait for annotation, {waiting[0]} first: {wanted}")


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


def read_decisions(file: Path, hosts: pa.Array) -> list[dict[str, str]]:
    """Decisions on prefixes of the given hosts.

    Raises:
        ValueError: the file is missing, or a line is not a decision.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file (annotate.file); give a JSONL of decisions")
    decisions, known = [], set(hosts.to_pylist())
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            decision = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{number}: not JSON: {error}") from None
        if not isinstance(decision, dict) or not {"prefix", "who"} <= set(decision) or decision.get("decision") not in ("math", "not_math"):
            raise ValueError(f"{file}:{number}: expected prefix, decision (math or not_math), reason, who; found {line[:100]!r}")
        if urls.host_of(f"http://{decision['prefix']}") in known:
            decisions.append(decision)
    return decisions


if __name__ == "__main__":
    stage.main(run)
