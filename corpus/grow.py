"""round N, last step: seeds grow by the uncollected pages under annotated prefixes, and the round's figures are taken.

"Linked to these URLs" (section 2.1) is read as membership in the prefix. The longest annotated prefix of a page decides.

Artifact: `seeds.parquet` (ids, for the next round's classifier), `collected.parquet` (ids, for the next round's overlap),
one line of `metrics.jsonl`. Recall and precision count pages, against the crawl's truth labels where it has them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mathpipe.corpus import urls
from mathpipe.corpus.annotate import MAX_DEPTH
from mathpipe.corpus.round_config import GrowConfig, GrowInputs
from mathpipe.pipeline import artifact, stage


def run(config: GrowConfig, inputs: GrowInputs, out: Path) -> dict[str, Any]:
    """Write seeds and collected pages; returns the figures of the round."""
    trained, chosen, judged, annotated = (
        artifact.read_manifest(path) for path in (inputs.classifier, inputs.selected, inputs.domains, inputs.annotations)
    )
    number = chosen["round"]
    collected = np.sort(pa.concat_tables(artifact.read_columns(inputs.selected, ["id"]))["id"].to_numpy())
    seeds = pq.read_table(inputs.classifier / "seeds.parquet")["id"].to_numpy()
    new = np.setdiff1d(uncollected(inputs.pages, collected, read_verdicts(inputs.annotations)), seeds)
    if config.max_new_seeds:
        new = np.random.default_rng([config.seed, number]).permutation(new)[: config.max_new_seeds]
    artifact.write_parquet(out / "seeds.parquet", pa.table({"id": np.union1d(seeds, new)}))
    artifact.write_parquet(out / "collected.parquet", pa.table({"id": collected}))
    before = pq.read_table(inputs.previous / "collected.parquet")["id"].to_numpy() if inputs.previous else None
    figures = {
        "round": number, "pages": len(collected), "tokens": chosen["num_tokens"], "overlap": overlap(collected, before),
        **against_truth(inputs.pages, collected), "num_positives": trained["num_positives"], "num_negatives": trained["num_negatives"],
        "held_out_f1": trained["held_out"].get("f1"), "domains": judged["num_domains"], "math_domains": judged["num_math_domains"],
        "math_prefixes": annotated["num_math"], "new_seeds": len(new), "seeds": len(seeds) + len(new),
    }  # fmt: skip
    (out / "metrics.jsonl").unlink(missing_ok=True)
    artifact.append_metrics(out, **figures)
    return figures | {"annotation_source": annotated["annotation_source"]}


def read_verdicts(annotations: Path) -> dict[str, bool]:
    """Prefix → whether it is math."""
    lines = (annotations / "decisions.jsonl").read_text(encoding="utf-8").splitlines()
    return {decision["prefix"]: decision["decision"] == "math" for decision in map(json.loads, lines)}


def uncollected(pages: Path, collected: np.ndarray, verdicts: dict[str, bool]) -> np.ndarray:
    """Ids of the pages under math prefixes that were not collected."""
    hosts = pa.array(sorted({prefix.partition("/")[0] for prefix, is_math in verdicts.items() if is_math}), pa.string())
    found = []
    for table in artifact.read_columns(pages, ["id", "url", "host"]):
        table = table.filter(pc.and_(pc.is_in(table["host"], hosts), pc.invert(pc.is_in(table["id"], pa.array(collected)))))
        ids, addresses = table["id"].to_pylist(), table["url"].to_pylist()
        found += [row for row, url in zip(ids, addresses, strict=True) if verdict(url, verdicts)]
    return np.array(sorted(found), np.int64)


def verdict(url: str, verdicts: dict[str, bool]) -> bool:
    """What the longest annotated prefix of a URL says.

    >>> verdict("https://a.org/x/y.html", {"a.org/": False, "a.org/x/": True})
    True
    """
    return next((verdicts[prefix] for prefix in reversed(urls.prefixes(url, MAX_DEPTH)) if prefix in verdicts), False)


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
