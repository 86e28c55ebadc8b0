"""round N, step annotate: which URL prefixes of the math-related domains hold mathematics.

People decide this in section 2.1. Three sources give decisions, one object a line: prefix (host and folders, ending in `/`),
decision (math, not_math), reason, who; the longest decided prefix of a page counts.
- `human`: people. The stage puts its questions into a database (`runtime.database`) as a queue, waits while they decide on the page of
  `mathpipe annotate`, and goes on when no host is left and nothing to settle, the budget is spent or somebody finished the queue.
  Where nobody serves that page it ends with exit code 75 and continues when it is run again. A decision holds in later rounds too.
- `file`: decisions made elsewhere, on any of these hosts; what the page exports is such a file.
- `policy` stands in for people: a prefix is math or not by the share of its pages that was collected, and between the two
  thresholds its sub-prefixes are judged.

Artifact: `decisions.jsonl`. Memory goes with the prefixes on math-related hosts. Where the loop has stopped before: the decisions
of the round before.
"""

from __future__ import annotations

import math
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
from mathpipe.corpus.annotation.records import checked, parsed
from mathpipe.corpus.round_config import AnnotateConfig, AnnotateInputs
from mathpipe.pipeline import artifact, log, stage
from mathpipe.pipeline.config import ANNOTATION_PORT, annotate_command

if TYPE_CHECKING:
    from mathpipe.corpus.annotation.store import Progress, Store

MAX_DEPTH = 8
"""Folders of a path that a prefix may have."""
NUM_SAMPLES = 6
"""Pages that people are shown of a prefix; not stated; we chose."""
POLL_S = 1.0
GRACE_S = 15.0
"""Time after the last decision or undo in which a queue that has come to its end can still be changed."""
NUM_EVENTS = 1_000
"""Newest decisions among which the last event is looked for."""


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
    artifact.write_lines(out / "decisions.jsonl", decisions)
    return facts | {"num_decisions": len(decisions), "num_math": sum(decision["decision"] == "math" for decision in decisions)}


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
    try:
        known = {queue.name for queue in store.queues()}
        asked = () if name in known else questions(inputs.pages, inputs.scores, inputs.selected, inputs.domains, config, NUM_SAMPLES)
        queue = store.add_queue(
            name, number, inputs.pages.absolute(), asked, overlap_frac=config.overlap_frac, max_decisions=config.max_decisions,
            annotate=out.name.rpartition("-")[0] or out.name,
        )  # fmt: skip
        wait_for_people(store, queue, config.runtime.wait, out)
        decisions, progress = store.final(queue), store.progress(queue)
        created_at = next(found.created_at for found in store.queues() if found.id == queue)
        return decisions, {
            "decided_before": sum(decision["at"] < created_at for decision in decisions), "num_left": hosts_left(store, queue),
            "num_unsettled": progress.num_unsettled,
            "annotators": list(store.people(queue)), "kappa": store.agreement(queue).kappa,
        }  # fmt: skip
    except DatabaseError as error:
        raise ValueError(f"{error}; run the same command again when the database is back") from error


def wait_for_people(store: Store, queue: int, patient: bool, out: Path) -> None:
    """Return when the queue has ended; it is then finished. Who is patient also waits for a database that does not answer."""
    from mathpipe.corpus.annotation.schema import DatabaseError

    now, events = store.progress(queue), Events()
    if not (now.left or now.is_finished or store.log(queue, limit=1)[1]):
        log.logger().info("nothing to ask: all %s were decided in earlier rounds", counted(now.total, "host"))
    total, unit, done = steps(now)
    with log.Progress(out, total, unit, "people decide", done) as progress:
        while True:
            try:
                if has_ended(store, queue, patient, events, progress):
                    return
            except DatabaseError as error:
                if not patient:
                    raise
                progress.advance(0, f"the database does not answer, asked again every {POLL_S:g} s: {error}")
            time.sleep(POLL_S)


def has_ended(store: Store, queue: int, patient: bool, events: Events, progress: log.Progress) -> bool:
    """Look once: whether the queue has ended; else show how far it is.

    Raises:
        Waiting: nobody serves the page, and who runs this is not patient.
    """
    now = store.progress(queue)
    if now.is_finished:
        return True
    ending, url = end_of(now), store.server()
    if ending:
        left_s = GRACE_S - events.age_s(store, queue)
        if left_s <= 0:
            store.finish(queue, "", ending)
            return True
        message = f"{ending}, goes on in {math.ceil(left_s)} s"
    elif url is None and not patient:
        raise stage.Waiting(what_waits(store, queue, now))
    else:
        nobody = "" if url else f"nobody serves the page: run `{annotate_command(progress.file.parent.parent.name)}`"
        to_settle = f"{now.num_unsettled} to settle" if now.num_unsettled else ""
        message = "; ".join(filter(None, [counted(now.num_decisions, "decision"), to_settle, nobody]))
    store.stamp(queue)
    progress.total, progress.unit, progress.done = steps(now)
    progress.url = f"{url or f'http://127.0.0.1:{ANNOTATION_PORT}/'}q/{queue}"
    progress.advance(0, message)
    return False


class Events:
    """How long ago the last decision or undo of a queue was."""

    def __init__(self) -> None:
        self._last, self._noticed = 0.0, -math.inf

    def age_s(self, store: Store, queue: int) -> float:
        """By the clock of the machine that wrote it, but no less than has gone by here since we noticed it: clocks differ."""
        last = max((decision.undone_at or decision.at for decision in store.log(queue, limit=NUM_EVENTS)[0]), default=0.0)
        if last != self._last:
            self._last, self._noticed = last, time.monotonic()
        return max(time.time() - last, time.monotonic() - self._noticed)


def steps(now: Progress) -> tuple[int, str, int]:
    """(total, unit, done) of a queue: hosts, or the decisions of its budget."""
    if now.budget:
        return now.num_decisions + now.left, "decisions", now.num_decisions
    return now.total, "hosts", now.total - now.left


def hosts_left(store: Store, queue: int) -> int:
    """Hosts of a queue that are not done, whatever its budget."""
    return store.rows(queue, "", state="left", limit=1)[1]


def what_waits(store: Store, queue: int, now: Progress) -> str:
    """`3 hosts wait for people, 1 prefix is to be settled`."""
    num_hosts, num_unsettled = hosts_left(store, queue), now.num_unsettled
    hosts = f"{counted(num_hosts, 'host')} wait{'s' * (num_hosts == 1)} for people" if num_hosts else ""
    noun, verb = ("prefix", "is") if num_unsettled == 1 else ("prefixes", "are")
    return ", ".join(filter(None, [hosts, num_unsettled and f"{num_unsettled} {noun} {verb} to be settled"]))


def counted(number: int, noun: str) -> str:
    """`1 host`, `2 hosts`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def end_of(now: Progress) -> str:
    """Why a queue ends by itself, or an empty string: what is to be settled keeps it open, but not beyond its budget."""
    if 0 < now.budget <= now.num_decisions:
        return f"the budget of {counted(now.budget, 'decision')} is spent"
    return "" if now.left or now.num_unsettled else "all decided"


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
        ValueError: the file cannot be read, or a line is not a decision.
    """
    known = set(hosts.to_pylist())
    return [decision for decision in parse_decisions(file, file.name) if urls.host_of(f"http://{decision['prefix']}") in known]


def parse_decisions(file: Path, who: str) -> Iterator[dict[str, Any]]:
    """All decisions of a JSONL file; `who` made those that name nobody.

    Raises:
        ValueError: the file cannot be read, or a line is not a decision.
    """
    try:
        with file.open("rb") as lines:
            for number, decision in parsed(lines):
                checked(number, decision, who)
                yield {**decision, "who": decision.get("who") or who, "reason": decision.get("reason") or ""}
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}; give a JSONL of decisions") from None
    except ValueError as error:  # UnicodeDecodeError too
        raise ValueError(f"{file}: {error}") from None


if __name__ == "__main__":
    stage.main(run)
