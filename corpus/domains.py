"""round N, step domains: hosts of which more than 10 % of the pages were collected are math-related (section 2.1).

Artifact: `domains.parquet` with host, num_pages, num_collected, collected_frac, is_math; most collected first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mathpipe.corpus.round_config import DomainsConfig, DomainsInputs
from mathpipe.pipeline import artifact, stage


def run(config: DomainsConfig, inputs: DomainsInputs, out: Path) -> dict[str, Any]:
    """Write the table of hosts; returns how many are math-related."""
    pages = pa.concat_tables(artifact.read_columns(inputs.pages, ["host"]))
    selected = pa.concat_tables(artifact.read_columns(inputs.selected, ["host"]))
    table = judge(pages, selected, config.min_collected_frac)
    artifact.write_parquet(out / "domains.parquet", table)
    number = artifact.read_manifest(inputs.selected)["round"]
    return {"round": number, "num_domains": len(table), "num_math_domains": pc.sum(table["is_math"]).as_py()}


def judge(pages: pa.Table, selected: pa.Table, min_collected_frac: float) -> pa.Table:
    """The table of hosts from the `host` columns of all pages and of the collected ones."""
    total = pages.group_by("host").aggregate([("host", "count")]).rename_columns(["host", "num_pages"])
    collected = selected.group_by("host").aggregate([("host", "count")]).rename_columns(["host", "num_collected"])
    table = total.join(collected, "host")
    table = table.set_column(table.column_names.index("num_collected"), "num_collected", pc.fill_null(table["num_collected"], 0))
    frac = pc.divide(pc.cast(table["num_collected"], pa.float64()), table["num_pages"])
    table = table.append_column("collected_frac", frac).append_column("is_math", pc.greater(frac, min_collected_frac))
    return table.sort_by([("num_collected", "descending"), ("host", "ascending")])


if __name__ == "__main__":
    stage.main(run)
