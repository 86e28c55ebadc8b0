"""round N, last step: seeds grow by the uncollected pages under annotated prefixes, and the round's figures are taken.

"Linked to these URLs" (section 2.1) is read as membership in the prefix. With `hyperlinks` also as being the target of a link on a
page under an annotated prefix (not as having such a link, which every page of a site with a navigation bar has), unless people
or policy have called the target's own prefix not math. The longest annotated prefix of a page decides.

Artifact: `seeds.parquet` (ids) and `math_hosts.parquet`, for the next round's classifier, `collected.parquet` (ids, for its
overlap), one line of `metrics.jsonl`. Recall and precision count pages, against the crawl's truth labels where it has them.
`stopped` is the number of the round from which on `stop_at_overlap` lets later rounds pass the result on. Memory: 8 bytes for
every collected page and every page under an annotated prefix.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mathpipe.corpus import urls
from mathpipe.corpus.annotate import MAX_DEPTH
from mathpipe.corpus.examples import is_member
from mathpipe.corpus.round_config import GrowConfig, GrowInputs
from mathpipe.pipeline import artifact, stage


def run(config: GrowConfig, inputs: GrowInputs, out: Path) -> dict[str, Any]:
    """Write seeds and collected pages; returns the figures of the round."""
    trained, chosen, judged, annotated = (
        artifact.read_manifest(path) for path in (inputs.classifier, inputs.selected, inputs.domains, inputs.annotations)
    )
    number = chosen["round"]
    if chosen.get("stopped") and inputs.previous:
        return pass_on(inputs.previous, number, out) | {"annotation_source": annotated["annotation_source"]}
    collected = np.sort(pa.concat_tables(artifact.read_columns(inputs.selected, ["id"]))["id"].to_numpy())
    seeds = pq.read_table(inputs.classifier / "seeds.parquet")["id"].to_numpy()
    verdicts = read_verdicts(inputs.annotations)
    under = pages_under(inputs.pages, verdicts)
    targets = linked(inputs.pages, under, verdicts) if config.hyperlinks else under[:0]
    new = np.setdiff1d(np.setdiff1d(np.union1d(under, targets), collected), seeds)
    if config.max_new_seeds:
        new = np.random.default_rng([config.seed, number]).permutation(new)[: config.max_new_seeds]
    before = pq.read_table(inputs.previous / "collected.parquet")["id"].to_numpy() if inputs.previous else None
    shared = overlap(collected, before)
    artifact.write_parquet(out / "seeds.parquet", pa.table({"id": np.union1d(seeds, new)}))
    artifact.write_parquet(out / "collected.parquet", pa.table({"id": collected}))
    shutil.copyfile(inputs.domains / "math_hosts.parquet", out / "math_hosts.parquet")
    figures = {
        "round": number, "pages": len(collected), "tokens": chosen["num_tokens"], "overlap": shared,
        **against_truth(inputs.pages, collected), "num_positives": trained["num_positives"], "num_negatives": trained["num_negatives"],
        "held_out_f1": trained["held_out"].get("f1"), "out_of_domain_f1": trained["out_of_domain"].get("f1"),
        "ece": trained["held_out"].get("ece"), "domains": judged["num_domains"], "math_domains": judged["num_math_domains"],
        "math_prefixes": annotated["num_math"], "new_seeds": len(new), "seeds": len(seeds) + len(new),
        "linked_seeds": int(np.isin(new, under, invert=True).sum()) if config.hyperlinks else None,
        "stopped": number if shared is not None and shared >= config.stop_at_overlap < 1 else None,
    }  # fmt: skip
    write_figures(out, figures)
    return figures | {"annotation_source": annotated["annotation_source"]}


def write_figures(out: Path, figures: dict[str, Any]) -> None:
    """The one line of metrics."""
    (out / "metrics.jsonl").unlink(missing_ok=True)
    artifact.append_metrics(out, **figures)


def pass_on(previous: Path, number: int, out: Path) -> dict[str, Any]:
    """The result of the round before as this round's: nothing was trained or collected."""
    for name in ("seeds.parquet", "collected.parquet", "math_hosts.parquet"):
        shutil.copyfile(previous / name, out / name)
    figures = artifact.read_metrics(previous)[-1] | {"round": number, "overlap": 1.0, "new_seeds": 0}
    write_figures(out, figures)
    return figures


def read_verdicts(annotations: Path) -> dict[str, bool]:
    """Prefix → whether it is math."""
    decisions = artifact.read_lines(annotations / "decisions.jsonl")
    return {decision["prefix"]: decision["decision"] == "math" for decision in decisions}


def pages_under(pages: Path, verdicts: dict[str, bool]) -> np.ndarray:
    """Sorted ids of the pages under math prefixes."""
    hosts = pa.array(sorted({urls.host_of(f"http://{prefix}") for prefix, is_math in verdicts.items() if is_math}), pa.string())
    found = []
    for table in artifact.read_columns(pages, ["id", "url", "host"]):
        table = table.filter(pc.is_in(table["host"], hosts))
        found += [row for row, url in zip(table["id"].to_pylist(), table["url"].to_pylist(), strict=True) if verdict(url, verdicts)]
    return np.array(sorted(found), np.int64)


def linked(pages: Path, sources: np.ndarray, verdicts: dict[str, bool]) -> np.ndarray:
    """Sorted ids of the pages that hyperlinks on the source pages lead to, but those under prefixes that are not math.

    Raises:
        ContractError: the pages were extracted without their links.
    """
    if not (pages / "links").is_dir():
        raise artifact.ContractError(f"{pages}: no links there; set pages.keep_links, or grow.hyperlinks = false")
    targets: set[str] = set()
    for table in artifact.read_columns(pages, ["id", "url"], "links"):
        targets.update(table.filter(pa.array(is_member(table["id"].to_numpy(), sources)))["url"].to_pylist())
    hosts = pa.array(sorted({urls.host_of(f"http://{target}") for target in targets}), pa.string())
    found = []
    for table in artifact.read_columns(pages, ["id", "url", "host"]):
        table = table.filter(pc.is_in(table["host"], hosts))
        rows = zip(table["id"].to_pylist(), table["url"].to_pylist(), strict=True)
        found += [row for row, url in rows if urls.normalize(url) in targets and verdict(url, verdicts) is not False]
    return np.array(sorted(found), np.int64)


def verdict(url: str, verdicts: dict[str, bool]) -> bool | None:
    """What the longest annotated prefix of a URL says; None without one.

    >>> verdict("https://a.org/x/y.html", {"a.org/": False, "a.org/x/": True})
    True
    """
    return next((verdicts[prefix] for prefix in reversed(urls.prefixes(url, MAX_DEPTH)) if prefix in verdicts), None)


def overlap(collected: np.ndarray, before: np.ndarray | None) -> float | None:
    """Share of this round's pages that the round before had collected (98 % in the paper's round 4)."""
    return None if before is None else len(np.intersect1d(collected, before)) / len(collected)


def against_truth(pages: Path, collected: np.ndarray) -> dict[str, float | None]:
    """Recall and precision by pages; None where the crawl has no labels. Pages without a label count for neither."""
    if not (pages / "labels").is_dir():
        return {"recall": None, "precision": None}
    labels = pa.concat_tables(artifact.read_columns(pages, ["id", "label"], "labels"))
    is_math = pc.equal(labels["label"], "math").to_numpy()
    is_collected = np.isin(labels["id"].to_numpy(), collected)
    hits = int((is_math & is_collected).sum())
    return {"recall": hits / max(1, int(is_math.sum())), "precision": hits / max(1, int(is_collected.sum()))}


if __name__ == "__main__":
    stage.main(run)
