"""Stage arm.NAME.SEED: one model of a comparison of section 5.1; `train` with the settings of `[ablate]` and the arm's phases.

1. The paper's arms begin with models of 400B tokens that are not public; here both stages are one run with one schedule.
2. An arm without a first stage trains on fewer tokens, as the paper's does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mathpipe.pipeline import stage
from mathpipe.pretrain import train
from mathpipe.pretrain.ablation_config import AblateConfig
from mathpipe.pretrain.config import PretrainInputs


def run(config: AblateConfig, inputs: PretrainInputs, out: Path) -> dict[str, Any]:
    """As `train.run`; facts: the arm as well."""
    return {"arm": config.arm, **train.run(config.settled(), inputs, out)}


if __name__ == "__main__":
    stage.main(run)
