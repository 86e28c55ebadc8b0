"""round N, step domains: domains of which more than 10 % of the pages were collected are math-related (section 2.1).

A domain is a host, or a registered domain (`by`). Memory goes with the number of hosts, not of pages.

Artifact: `domains.parquet` with host (the domain's name), num_pages, num_collected, collected_frac, mean_score (of all its
pages), is_math, verdict (in words), examples (collected URLs, best first), most collected first; `math_hosts.parquet` with the
hosts of math-related domains. Where the loop has stopped before: those of the round before.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from publicsuffixlist import PublicSuffixList

from mathpipe.corpus.examples import is_member, rank_in_run
from mathpipe.corpus.round_config import DomainsConfig, DomainsInputs
from mathpipe.corpus.selection import scored_pages
from mathpipe.pipeline import artifact, stage

PENDING_ROWS = 5_000_000
MICRO = 1_000_000
"""Scores are added up in millionths: whole numbers give the same sum in any order."""
SUMS = ("num_pages", "num_collected", "score_sum")


def run(config: DomainsConfig, inputs: DomainsInputs, out: Path) -> dict[str, Any]:
    """Write the table of domains; returns how many there are and how many are math-related."""
    chosen = artifact.read_manifest(inputs.selected)
    facts = {"round": chosen["round"], "domains_by": config.by}
    if chosen.get("stopped") and inputs.previous:
        for name in ("domains.parquet", "math_hosts.parquet"):
            shutil.copyfile(inputs.previous / name, out / name)
        before = artifact.read_manifest(inputs.previous)
        return facts | {key: before[key] for key in ("num_domains", "num_math_domains")} | {"stopped": chosen["stopped"]}
    by_host = fold(count_hosts(inputs), add)
    by_host = by_host.append_column("domain", named(by_host["host"], config.by))
    table = judge(add(by_host, "domain"), config.min_collected_frac)
    table = table.append_column("examples", examples(config, inputs.selected, table["host"]))
    artifact.write_parquet(out / "domains.parquet", table)
    math_domains = table.filter(table["is_math"])["host"]
    math_hosts = by_host.filter(pc.is_in(by_host["domain"], math_domains.combine_chunks())).select(["host"]).sort_by("host")
    artifact.write_parquet(out / "math_hosts.parquet", math_hosts)
    return facts | {"num_domains": len(table), "num_math_domains": len(math_domains)}


def count_hosts(inputs: DomainsInputs) -> Iterator[pa.Table]:
    """Pages, collected pages and the sum of scores by host, of every file."""
    for name, table in scored_pages(inputs, ["host"]):
        chosen = pq.read_table(inputs.selected / "data" / name, columns=["id"])["id"].to_numpy()
        is_collected = pa.array(is_member(table["id"].to_numpy(), chosen).astype(np.int64))
        score = pa.array(np.rint(table["score"].to_numpy().astype(np.float64) * MICRO).astype(np.int64))
        columns = [table["host"], pa.array(np.ones(len(table), np.int64)), is_collected, score]
        yield add(pa.table(columns, names=["host", *SUMS]))


def add(table: pa.Table, key: str = "host") -> pa.Table:
    """One row for every value of `key`, with its sums, as `host`."""
    return table.group_by(key).aggregate([(name, "sum") for name in SUMS]).rename_columns(["host", *SUMS])


def fold(tables: Iterable[pa.Table], reduce: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """`reduce` of all rows, without having them all in memory."""
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if sum(map(len, pending[1:])) > PENDING_ROWS:
            pending = [reduce(pa.concat_tables(pending))]
    return reduce(pa.concat_tables(pending))


@functools.cache
def public_suffixes() -> PublicSuffixList:
    """The list that the package brings with it."""
    return PublicSuffixList()


def domain_of(host: str) -> str:
    """The registered domain of a host; a host that has none, such as an address, is its own.

    >>> [domain_of(host) for host in ("maths.ox.ac.uk", "ann.github.io", "10.0.0.1")]
    ['ox.ac.uk', 'ann.github.io', '10.0.0.1']
    """
    is_address = ":" in host or host.rpartition(".")[2].isdigit()
    return host if is_address else public_suffixes().privatesuffix(host) or host


def named(hosts: pa.ChunkedArray, by: str) -> pa.ChunkedArray:
    """The domains of hosts."""
    if by == "host":
        return hosts
    return pa.chunked_array([[domain_of(host) for host in hosts.to_pylist()]], pa.string())


def judge(table: pa.Table, min_collected_frac: float) -> pa.Table:
    """The table of domains with share, mean score and verdict; most collected first."""
    num_pages = pc.cast(table["num_pages"], pa.float64())
    frac = pc.divide(pc.cast(table["num_collected"], pa.float64()), num_pages)
    is_math = pc.greater(frac, min_collected_frac)
    rows = zip(table["num_collected"].to_pylist(), table["num_pages"].to_pylist(), is_math.to_pylist(), strict=True)
    limit = f"more than {100 * min_collected_frac:g} %"
    words = [f"{num} of {of} pages collected: {'math-related, ' if yes else 'not math-related, not '}{limit}" for num, of, yes in rows]
    mean = pc.divide(pc.divide(pc.cast(table["score_sum"], pa.float64()), float(MICRO)), num_pages)
    columns = {"collected_frac": frac, "mean_score": mean, "is_math": is_math, "verdict": pa.array(words, pa.string())}
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table.drop_columns("score_sum").sort_by([("num_collected", "descending"), ("host", "ascending")])


def examples(config: DomainsConfig, selected: Path, domains: pa.ChunkedArray) -> pa.Array:
    """Of every domain, the URLs of the collected pages with the highest scores."""

    def best_of(table: pa.Table) -> pa.Table:
        table = table.sort_by([("host", "ascending"), ("score", "descending"), ("url", "ascending")])
        return table.filter(pa.array(rank_in_run(table["host"]) < config.num_examples))

    collected = artifact.read_columns(selected, ["host", "url", "score"])
    best = fold((best_of(table.set_column(0, "host", named(table["host"], config.by))) for table in collected), best_of)
    urls: dict[str, list[str]] = {}
    for host, url in zip(best["host"].to_pylist(), best["url"].to_pylist(), strict=True):
        urls.setdefault(host, []).append(url)
    return pa.array([urls.get(domain, []) for domain in domains.to_pylist()], pa.list_(pa.string()))


if __name__ == "__main__":
    stage.main(run)
