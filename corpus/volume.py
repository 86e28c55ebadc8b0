"""volume N of the sweep, step select: round 1's ranking cut at N times its tokens (section 2.1: 40, 80, 120, 160B).

Volume 1 is what round 1 collects. N is one more than the volume this one reads, as a round gets its number from the round
before. Artifact: that of `selection`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mathpipe.corpus import selection
from mathpipe.corpus.round_config import SelectConfig, SelectInputs, VolumeInputs
from mathpipe.pipeline import artifact, stage


def run(config: SelectConfig, inputs: VolumeInputs, out: Path) -> dict[str, Any]:
    """Collect; returns the facts of `selection`, and N as `volume`."""
    smaller = artifact.read_manifest(inputs.smaller)
    number = smaller.get("volume", 1) + 1
    wider = dataclasses.replace(config, top_tokens=(number * config.top_tokens[0],))
    facts = selection.run(wider, SelectInputs(inputs.pages, inputs.scores), out)
    if facts["num_pages"] == smaller["num_pages"]:
        raise ValueError(
            f"volume {number}: no page beyond the {smaller['num_pages']:,} of volume {number - 1} ({smaller['num_tokens']:,} tokens) has a "
            f"score of at least select.min_score = {config.min_score}; lower select.top_tokens or select.min_score"
        )
    return facts | {"volume": number}


if __name__ == "__main__":
    stage.main(run)
