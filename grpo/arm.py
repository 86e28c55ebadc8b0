"""Stage rl.ARM.SEED: one run of a comparison of methods; `train` with the settings of `[arms]` and the arm's own.

1. The paper's figure 5 trains Instruct 1.3B; here it is the profile's SFT model.
2. RFT and DPO sample anew from the SFT model at every step, as many outputs as the others: the methods differ in the data source,
   not in the number of samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mathpipe.grpo import train
from mathpipe.grpo.arms_config import ArmConfig
from mathpipe.grpo.config import GrpoInputs
from mathpipe.pipeline import stage


def run(config: ArmConfig, inputs: GrpoInputs, out: Path) -> dict[str, Any]:
    """As `train.run`; facts: the arm as well."""
    return {"arm": config.arm, **train.run(config.settled(), inputs, out)}


if __name__ == "__main__":
    stage.main(run)
