"""The paper's pre-training comparisons (section 5.1): what each arm is trained on, and what compares them (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from mathpipe.pretrain.config import Phase, PretrainConfig

ARMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "general": (("general",), ()),
    "general-math": (("general",), ("math",)),
    "general-arxiv": (("general",), ("arxiv",)),
    "code-math": (("code",), ("math",)),
    "math": ((), ("math",)),
    "mixed": (("code", "math"),),
}
"""Arm → sources of its first and second stage; one entry of two sources mixes them in one stage (section 5.1: tables 6 to 9)."""


def phases_of(arm: str, first_frac: float) -> tuple[float, tuple[Phase, ...]]:
    """Share of the tokens of a two-stage arm that this arm trains on, and its phases.

    >>> phases_of("math", 0.75)
    (0.25, (Phase(frac=1.0, mix={'math': 1.0}),))
    >>> phases_of("code-math", 0.75)[1]
    (Phase(frac=0.75, mix={'code': 1.0}), Phase(frac=0.25, mix={'math': 1.0}))
    """
    stages = ARMS[arm]
    shares = (first_frac, 1 - first_frac)
    if len(stages) == 1:
        return 1.0, (Phase(1.0, dict(zip(stages[0], shares, strict=True))),)
    used = [(share, sources[0]) for share, sources in zip(shares, stages, strict=True) if sources]
    total = sum(share for share, _ in used)
    return total, tuple(Phase(share / total, {source: 1.0}) for share, source in used)


@dataclass(frozen=True)
class AblateConfig(PretrainConfig):
    """One arm of a comparison. `phases` follow from the arm, `total_tokens` are those of two stages."""

    SECTION: ClassVar[str] = "ablate"

    arm: str = ""
    """Set by the stage: one of ARMS."""
    first_frac: float = 400 / 550
    """Share of the first stage's tokens (section 5.1: 400B of general or code tokens, then 150B of math)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phases != PretrainConfig.phases:
            raise ValueError("phases follow from the arm and from first_frac; leave them out")
        if self.arm and self.arm not in ARMS:
            raise ValueError(f"arm must be one of {', '.join(ARMS)}, found {self.arm!r}")
        if not 0 < self.first_frac < 1:
            raise ValueError(f"first_frac must lie between 0 and 1, found {self.first_frac}")

    def settled(self) -> PretrainConfig:
        """The training run of this arm.

        Raises:
            ValueError: no arm is named.
        """
        if not self.arm:
            raise ValueError("ablate.arm is empty; give --set ablate.arm=code-math (or another), or run `mathpipe ablate code-first`")
        share, phases = phases_of(self.arm, self.first_frac)
        own = {f.name: getattr(self, f.name) for f in fields(PretrainConfig)}
        return PretrainConfig(**own | {"phases": phases, "total_tokens": round(share * self.total_tokens)})

    def describe(self) -> str:
        """For `mathpipe plan`."""
        return self.settled().describe()


@dataclass(frozen=True)
class CompareInputs:
    """The texts to compare on, and the models."""

    benchmarks: Path
    corpus: Path
    sources: Path
    tokens: Path
    runs: Mapping[str, Path]
    """`ARM.SEED` → model, arm by arm, the first being what the others are compared with."""
