"""Stage examples.clean: the examples of SFT without those that share text with a benchmark's test problems; `decontaminate` over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mathpipe.corpus import decontaminate
from mathpipe.corpus.config import CleanExamplesConfig, CorpusInputs
from mathpipe.pipeline import stage


def run(config: CleanExamplesConfig, inputs: CorpusInputs, out: Path) -> dict[str, Any]:
    """As `decontaminate.run`."""
    return decontaminate.run(config, inputs, out)


if __name__ == "__main__":
    stage.main(run)
