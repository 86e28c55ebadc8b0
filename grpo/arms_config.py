"""The arms of reinforcement that are compared: figure 5's methods, and what keeps groups diverse (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from mathpipe.grpo.config import GrpoConfig

BY_MODEL = {"rewards": {"reward_model": 1.0}}
ARMS: dict[str, dict[str, Any]] = {
    "rft": {"method": "rft"},
    "online_rft": {"method": "online_rft"},
    "dpo": {"method": "dpo"},
    "ppo": {"method": "ppo", "kl": "k1_reward", **BY_MODEL},
    "grpo_os": BY_MODEL,
    "grpo_ps": {"supervision": "process", "step_rewards": "reward_model", **BY_MODEL},
    "plain": {},
    "steps": {"supervision": "process", "step_rewards": "steps"},
    "ladder": {"temperatures": (0.7, 0.85, 1.0, 1.15, 1.3)},
    "top_p": {"top_p": 0.95},
    "variants": {"prompt_variants": ("", "Think carefully.", "Check every step.", "Solve this problem.")},
    "reject": {"duplicate_jaccard": 0.9},
    "refill": {"refill_rounds": 2},
}
"""Arm → what it sets. As in figure 5, the reward is a rule for RFT, Online RFT and DPO, and a trained model for PPO and GRPO; the
others have the rule: `plain` and `steps` are GRPO+OS and GRPO+PS with exact rewards."""
SET = tuple(dict.fromkeys(name for values in ARMS.values() for name in values))


@dataclass(frozen=True)
class ArmConfig(GrpoConfig):
    """One arm; all of them differ in nothing but what ARMS sets, and in the seed."""

    SECTION: ClassVar[str] = "arms"

    arm: str = ""
    """Set by the stage: one of ARMS."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in SET:
            if getattr(self, name) != getattr(GrpoConfig(), name):
                raise ValueError(f"{name} follows from the arm; leave it out")
        if self.arm and self.arm not in ARMS:
            raise ValueError(f"arm must be one of {', '.join(ARMS)}, found {self.arm!r}")

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """What the arms set: another value makes other runs."""
        return ARMS

    def settled(self) -> GrpoConfig:
        """The training run of this arm.

        Raises:
            ValueError: no arm is named, or what it sets does not go with the other values.
        """
        if not self.arm:
            raise ValueError("arms.arm is empty; give --set arms.arm=grpo_os (or another), or run `mathpipe ablate figure5`")
        try:
            return GrpoConfig(**{f.name: getattr(self, f.name) for f in fields(GrpoConfig)} | ARMS[self.arm])
        except ValueError as error:
            raise ValueError(f"[arms] does not go with arm {self.arm!r}, which sets {ARMS[self.arm]}: {error}") from error

    def conditional_inputs(self) -> tuple[str, ...]:
        """Those of the training run."""
        return self.settled().conditional_inputs()


@dataclass(frozen=True)
class CompareConfig:
    """A comparison of arms has no settings of its own."""

    SECTION: ClassVar[str] = "compare"
    VERSION: ClassVar[int] = 1


@dataclass(frozen=True)
class CompareInputs:
    """The runs."""

    runs: Mapping[str, Path]
    """`ARM.SEED` → finished run, arm by arm, the first being what the others are compared with."""
