"""round N, step annotate: which URL prefixes of the math-related domains hold mathematics.

People decide this in section 2.1. Three sources give decisions, one object a line: prefix (host and folders, ending in `/`),
decision (math, not_math), reason, who; the longest decided prefix of a page counts.
- `human`: people. The stage puts its questions into a database (`runtime.database`) as a queue, waits while they decide on the page of
  `mathpipe annotate`, and goes on when no host is left, the budget is spent or somebody finished the queue. Where nobody serves
  that page it ends with exit code 75 and continues when it is run again. A decision holds in later rounds too.
- `file`: decisions made elsewhere, on any of these hosts; what the page exports is such a file.
- `policy` stands in for people: a prefix is math or not by the share of its pages that was collected, and between the two
  thresholds its sub-prefixes are judged.

Artifact: `decisions.jsonl`. Memory goes with the prefixes on math-related hosts. Where the loop has stopped before: the decisions
of the round before.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mathpipe.corpus import urls
from mathpipe.corpus.round_config import AnnotateConfig, AnnotateInputs
from mathpipe.pipeline import artifact, log, stage
from mathpipe.pipeline.config import ANNOTATION_PORT

if TYPE_CHECKING:
    from mathpipe.corpus.annotation.store import Progress, Store

MAX_DEPTH = 8
"""Folders of a path that a prefix may have."""
NUM_SAMPLES = 6
"""Pages that people are shown of a prefix; not stated; we chose."""
POLL_S = 1.0
GRACE_S = 5.0
"""Time in which the decision that ended a queue can be taken back."""


def run(config: AnnotateConfig, inputs: AnnotateInputs, out: Path) -> dict[str, Any]:
    """Write the decisions; returns counts, `annotation_source` and, of people, who they were and how far they agreed."""
    chosen = artifact.read_manifest(inputs.selected)
    facts = {"round": chosen["round"], "annotation_source": config.source}
    if chosen.get("stopped") and inputs.previous:
        shutil.copyfile(inputs.previous / "decisions.jsonl", out / "decisions.jsonl")
        before = artifact.read_manifest(inputs.previous)
        return facts | {key: before[key] for key in ("num_decisions", "num_math")} | {"stopped": chosen["stopped"]}
    if config.source == "human":
        decisions, found = ask_people(config, inputs, chosen["round"], out)
        facts |= found
    else:
        hosts = pq.read_table(inputs.domains / "math_hosts.parquet")["host"].combine_chunks()
        decisions = read_decisions(Path(config.file), hosts) if config.source == "file" else by_policy(config, inputs, hosts)
    write_lines(out / "decisions.jsonl", decisions)
    return facts | {"num_decisions": len(decisions), "num_math": sum(decision["decision"] == "math" for decision in decisions)}


def write_lines(file: Path, values: Iterable[dict[str, Any]]) -> None:
    """JSON lines, atomically."""
    partial = file.with_name(f".{file.name}.tmp")
    partial.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    partial.replace(file)


def page_urls(path: Path, hosts: pa.Array) -> Iterator[str]:
    """URLs of an artifact's pages on the given hosts."""
    for table in artifact.read_columns(path, ["url", "host"]):
        yield from table.filter(pc.is_in(table["host"], hosts))["url"].to_pylist()


def ask_people(config: AnnotateConfig, inputs: AnnotateInputs, number: int, out: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """People's decisions on the prefixes of this round, and facts about them.

    Raises:
        Waiting: questions are open, nobody serves the page, and `runtime.wait` is not set.
        ValueError: the database is gone.
    """
    from mathpipe.corpus.annotation.questions import questions
    from mathpipe.corpus.annotation.schema import DatabaseError
    from mathpipe.corpus.annotation.store import Store

    store, name = Store(config.database(out.parent)), f"{out.parent.name}/{out.name}"
    known = {queue.name for queue in store.queues()}
    asked = () if name in known else questions(inputs.pages, inputs.scores, inputs.selected, inputs.domains, config, NUM_SAMPLES)
    queue = store.add_queue(
        name, number, inputs.pages.absolute(), asked, overlap_frac=config.overlap_frac, max_decisions=config.max_decisions,
        annotate=out.name.rpartition("-")[0] or out.name,
    )  # fmt: skip
    try:
        wait_for_people(store, queue, config.runtime.wait, out)
    except DatabaseError as error:
        raise ValueError(f"{error}; run the same command again when the database is back") from error
    decisions, progress = store.final(queue), store.progress(queue)
    created_at = next(found.created_at for found in store.queues() if found.id == queue)
    return decisions, {
        "decided_before": sum(decision["at"] < created_at for decision in decisions), "num_left": progress.left,
        "num_unsettled": progress.num_flagged + progress.num_disagreements,
        "annotators": list(store.people(queue)), "kappa": store.agreement(queue).kappa,
    }  # fmt: skip


def wait_for_people(store: Store, queue: int, patient: bool, out: Path) -> None:
    """Return when the queue has ended; it is then finished."""
    now, last_open = store.progress(queue), time.monotonic() - GRACE_S
    with log.Progress(out, now.total, "hosts", "people decide", done=now.total - now.left) as progress:
        while not now.is_finished:
            if why := end_of(now):
                if time.monotonic() - last_open >= GRACE_S:
                    store.finish(queue, "", why)
                    break
            else:
                last_open = time.monotonic()
            url = store.server()
            if url is None and not patient:
                raise stage.Waiting(f"{counted(now.left, 'question')} wait{'s' * (now.left == 1)} for people")
            progress.done, progress.url = now.total - now.left, url or f"http://127.0.0.1:{ANNOTATION_PORT}/"
            nobody = "" if url else "; nobody serves the page: run `mathpipe annotate`"
            progress.advance(0, counted(now.num_decisions, "decision") + nobody)
            time.sleep(POLL_S)
            now = store.progress(queue)


def counted(number: int, noun: str) -> str:
    """`1 question`, `2 questions`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def end_of(progress: Progress) -> str:
    """Why a queue ends by itself, or an empty string."""
    if not progress.left:
        return "no question is left"
    return f"the budget of {progress.budget} decisions is spent" if 0 < progress.budget <= progress.num_decisions else ""


def by_policy(config: AnnotateConfig, inputs: AnnotateInputs, hosts: pa.Array) -> list[dict[str, str]]:
    """The automatic decisions on all hosts."""
    counts = count_prefixes(page_urls(inputs.pages, hosts), page_urls(inputs.selected, hosts))
    return [decision for root in sorted(prefix for prefix in counts if prefix.count("/") == 1) for decision in judge(root, counts, config)]


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


def read_decisions(file: Path, hosts: pa.Array) -> list[dict[str, Any]]:
    """Decisions on prefixes of the given hosts.

    Raises:
        ValueError: the file is missing, or a line is not a decision.
    """
    known = set(hosts.to_pylist())
    return [decision for decision in parse_decisions(file) if urls.host_of(f"http://{decision['prefix']}") in known]


def parse_decisions(file: Path) -> Iterator[dict[str, Any]]:
    """All decisions of a JSONL file.

    Raises:
        ValueError: the file is missing, or a line is not a decision.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file; give a JSONL of decisions")
    with file.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            try:
                decision = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}:{number}: not JSON: {error}") from None
            if not is_decision(decision):
                wanted = "prefix (host/ or host/folder/), decision (math or not_math), reason, who"
                raise ValueError(f"{file}:{number}: expected {wanted}; found {line.strip()[:100]!r}")
            yield decision


def is_decision(value: Any) -> bool:
    """Whether a line has what a decision needs, as text that can be stored."""
    if not isinstance(value, dict) or value.get("decision") not in ("math", "not_math"):
        return False
    texts = [value.get("prefix"), value.get("who"), value.get("reason", "")]
    whole = all(isinstance(text, str) and text.encode(errors="replace").decode() == text for text in texts)
    return whole and value["prefix"].endswith("/")


if __name__ == "__main__":
    stage.main(run)
