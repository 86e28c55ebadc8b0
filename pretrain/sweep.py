"""Stage volumeN: the small model that judges volume N of the corpus; `train` with the settings of `[sweep]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mathpipe.pipeline import stage
from mathpipe.pretrain import train
from mathpipe.pretrain.config import PretrainInputs, SweepConfig


def run(config: SweepConfig, inputs: PretrainInputs, out: Path) -> dict[str, Any]:
    """As `train.run`."""
    return train.run(config, inputs, out)


if __name__ == "__main__":
    stage.main(run)
