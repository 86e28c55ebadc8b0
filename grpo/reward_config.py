"""Configs of the stages that make a reward model: labels and reward_model (torch-free)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mathpipe.grpo.config import GENERATED, SAMPLERS, GrpoConfig
from mathpipe.pipeline.config import Runtime, nearest

SEED_OFFSET = 500_000
"""Between labels' and grpo's streams of questions and samples of the same seed."""
KINDS, LABELS, STARTS = ("process", "outcome"), ("hard", "soft"), ("pretrain", "sft")


@dataclass(frozen=True)
class LabelsConfig:
    """Labels for the steps of solutions, by roll-outs from each of them (Math-Shepherd, arXiv 2312.08935, as section 4.1.2 asks)."""

    SECTION: ClassVar[str] = "labels"
    VERSION: ClassVar[int] = 2

    questions: tuple[str, ...] = (GENERATED,)
    """Sources of questions, as in `[grpo]`."""
    num_problems: int = 1000
    """Questions to train on."""
    num_held_out: int = 100
    """Questions to measure the reward model on."""
    solutions: int = 4
    """Solutions sampled for each question (Math-Shepherd: 15)."""
    rollouts: int = 4
    """Completions sampled after each step but the last (Math-Shepherd: 8)."""
    temperature: float = 1.0
    """Of both."""
    max_new_tokens: int = 48
    """Longest solution, and longest completion of one."""
    max_prompt_tokens: int = 128
    """Questions with a longer prompt are left out."""
    sampler: str = "vllm"
    """As in `[grpo]`."""
    questions_per_shard: int = 50
    """Questions of one file; a stage that was killed goes on with the next file."""
    seed: int = 1
    """Questions and sampling; whatever grpo's is, both ask other questions of the generated family."""
    runtime: Runtime = field(default_factory=Runtime)
    """Hardware."""

    def __post_init__(self) -> None:
        for name in ("num_problems", "num_held_out", "solutions", "rollouts", "max_new_tokens", "max_prompt_tokens", "questions_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, found {self.temperature}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, found {self.sampler!r}{nearest(self.sampler, SAMPLERS)}")
        self.sampling()

    def sampling(self) -> GrpoConfig:
        """The same as settings of grpo, whose questions and samplers this stage uses: a group is the solutions of a question."""
        return GrpoConfig(
            questions=self.questions, num_steps=self.num_problems, questions_per_step=1, num_held_out=self.num_held_out,
            group_size=self.solutions, temperatures=(self.temperature,), max_new_tokens=self.max_new_tokens,
            max_prompt_tokens=self.max_prompt_tokens, sampler=self.sampler, seed=SEED_OFFSET + self.seed, runtime=self.runtime,
        )  # fmt: skip

    def conditional_inputs(self) -> tuple[str, ...]:
        """Inputs that these settings need beside the SFT model."""
        return self.sampling().conditional_inputs()

    def describe(self) -> str:
        """For `mathpipe plan`."""
        return f"{self.num_problems + self.num_held_out:,} questions × {self.solutions} solutions, {self.rollouts} roll-outs a step"

    def require(self, runtime: Runtime) -> None:
        """Refuse a machine without the GPUs or the sampler asked for."""
        self.sampling().require(runtime)


@dataclass(frozen=True)
class RewardModelConfig:
    """A language model with one number as its head, trained to tell right steps or answers (section 4.1.2)."""

    SECTION: ClassVar[str] = "reward_model"
    VERSION: ClassVar[int] = 2

    kind: str = "process"
    """`process`: a label at the end of each step, the last one's is the answer's; `outcome`: the answer's alone, at the last token."""
    labels: str = "hard"
    """Of steps: `hard` (some roll-out was right) or `soft` (share of them)."""
    start: str = "pretrain"
    """`pretrain` (paper: from the base model) or `sft`."""
    epochs: float = 2.0
    """Passes over the solutions."""
    batch_outputs: int = 32
    """Solutions of an optimizer step, over all processes."""
    micro_batch_outputs: int = 32
    """Solutions of one forward pass of one process, packed without padding."""
    lr: float = 1e-3
    """Peak learning rate (paper: 2e-5)."""
    schedule: str = "constant"
    """`constant`, `paper` or `note` (pretrain/optim.py)."""
    warmup_steps: int = 5
    """Steps of linear warm-up."""
    beta1: float = 0.9
    """AdamW β₁."""
    beta2: float = 0.95
    """AdamW β₂."""
    weight_decay: float = 0.0
    """On matrices, not on norms."""
    max_grad_norm: float = 1.0
    """Gradient clipping."""
    bf16: bool = False
    """bf16 compute with fp32 master weights."""
    zero_stage: int = 0
    """DeepSpeed ZeRO stage, 0 to 3."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass."""
    on_bad_loss: str = "stop"
    """On a loss or gradient that is not finite, and on a spike: `stop`, or `skip` the step (five in a row stop)."""
    spike_factor: float = 0.0
    """A loss above this many times the median of the last 50 is a spike; 0: none is."""
    eval_every: int = 50
    """Steps between two measurements on the held-out questions."""
    checkpoint_every: int = 50
    """Steps between two resumable checkpoints."""
    keep_checkpoints: int = 1
    """How many of them are kept."""
    seed: int = 0
    """Order of the solutions."""
    runtime: Runtime = field(default_factory=Runtime)
    """Hardware."""

    def __post_init__(self) -> None:
        choices = {
            "kind": KINDS, "labels": LABELS, "start": STARTS, "schedule": ("paper", "note", "constant"), "on_bad_loss": ("stop", "skip"),
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                nearby = nearest(getattr(self, name), known)
                raise ValueError(f"{name} must be one of {', '.join(known)}, found {getattr(self, name)!r}{nearby}")
        for name in ("batch_outputs", "micro_batch_outputs", "eval_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("lr", "warmup_steps", "weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if self.epochs <= 0:
            raise ValueError(f"epochs must be positive, found {self.epochs}")
        if self.spike_factor and self.spike_factor <= 1:
            raise ValueError(f"spike_factor must be 0 (off) or above 1, found {self.spike_factor}")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage must be 0, 1, 2 or 3, found {self.zero_stage}")

    def describe(self) -> str:
        """For `mathpipe plan`."""
        labels = f" ({self.labels} labels)" if self.kind == "process" else ""
        return f"{self.kind} model{labels} from {self.start}, {self.epochs:g} passes in steps of {self.batch_outputs:,} solutions"

    def require(self, runtime: Runtime) -> None:
        """Refuse a machine without the GPUs asked for."""
        runtime.require_devices()


@dataclass(frozen=True)
class LabelsInputs:
    """`examples` and `clean`: where `questions` names sources of them."""

    sft: Path
    examples: Path | None = None
    clean: Path | None = None


@dataclass(frozen=True)
class RewardModelInputs:
    labels: Path
    pretrain: Path
    sft: Path
