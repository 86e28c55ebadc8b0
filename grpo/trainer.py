"""The models of a GRPO run, and what happens to them between iterations (algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mathpipe.grpo import scorer
from mathpipe.grpo.config import GrpoConfig, GrpoInputs
from mathpipe.grpo.held_out import HeldOut
from mathpipe.grpo.learner import Learner, needs_reference
from mathpipe.grpo.methods import METHODS
from mathpipe.grpo.policy import Policy
from mathpipe.grpo.reward_model import read_completions
from mathpipe.grpo.rewards import Rewards
from mathpipe.grpo.sampler import Sampler, make_sampler
from mathpipe.pipeline import log
from mathpipe.pretrain import loop, model, optim

ITERATIONS = "iterations"
COMPLETIONS = "completions"


@dataclass
class Trainer:
    """The models of a run: those that learn, the one that samples, those that reward."""

    config: GrpoConfig
    vocabulary: Any
    start: Path
    """The SFT model."""
    learner: Learner
    rewards: Rewards
    sampler: Sampler

    @classmethod
    def make(cls, config: GrpoConfig, inputs: GrpoInputs, vocabulary: Any, device: torch.device) -> Trainer:
        """All models as they are before the first step."""
        start = inputs.sft / model.MODEL
        network = model.load(start)
        model.require_context(start, network, config.max_prompt_tokens + config.max_new_tokens)
        if config.activation_checkpointing:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        policy = make_engine(config, Policy(network).to(device), config.lr)
        critic = None
        if config.method == "ppo":
            critic = make_engine(config, scorer.from_language_model(start).to(device), config.value_lr)
        is_offline = METHODS[config.method].source == "sft"
        reference = load_reference(config, start, device) if needs_reference(config) or is_offline else None
        learner = Learner(config, policy, reference, critic)
        rewards = Rewards(config, inputs.reward_model, vocabulary, device)
        sampling = model.load(start).to(device) if is_offline and config.sampler == "transformers" else network
        return cls(config, vocabulary, start, learner, rewards, make_sampler(config, start, sampling, vocabulary))

    def further(self) -> dict[str, Any]:
        """Engines beside the policy's, for checkpoints."""
        reward = self.rewards.model
        engines = {"value": self.learner.critic, "reward": reward.engine if reward else None}
        return {name: engine for name, engine in engines.items() if engine is not None}

    def close(self) -> None:
        """End the processes that sample and reward."""
        self.sampler.close()
        self.rewards.close()

    def network(self) -> Any:
        """The policy's transformers model."""
        return self.learner.policy.module.model

    def write_model(self, out: Path) -> None:
        """The policy as `out/model`; every process calls it."""
        loop.write_model(self.learner.policy, self.network(), self.vocabulary, out)

    def sync(self, evaluating: bool = False) -> None:
        """The sampler takes over the policy's weights; between evaluations RFT and DPO sample from their data source, the reference."""
        if METHODS[self.config.method].source == "sft" and not evaluating:
            assert self.learner.reference is not None
            self.sampler.sync(list(self.learner.reference.model.named_parameters()))
        else:
            self.sampler.sync(optim.named_weights(self.learner.policy, self.network()))

    def accuracy(self, held_out: HeldOut, samples: int, temperature: float) -> np.ndarray:
        """Share of right samples of each held-out question."""
        is_offline = METHODS[self.config.method].source == "sft"
        if is_offline:
            self.sync(evaluating=True)
        found = held_out.correct(self.sampler, samples, temperature)
        if is_offline:
            self.sync()
        return found

    def accuracies(self, held_out: HeldOut) -> dict[str, list[float]]:
        """Of each held-out question, sampled at temperature 1 and greedy."""
        return {
            "sampled": self.accuracy(held_out, self.config.held_out_samples, 1.0).tolist(),
            "greedy": self.accuracy(held_out, 1, 0.0).tolist(),
        }

    def begin_iteration(self, number: int, out: Path, resumed: bool) -> None:
        """Algorithm 1, lines 2 and 9: the reference becomes the policy, the reward model learns from the last iteration's outputs.

        A run that is resumed inside an iteration takes both from what the iteration left when it began.
        """
        if number == 0:
            return
        folder = out / ITERATIONS / str(number)
        if not resumed:
            self.write_model(folder)
            optim.barrier()
            self._teach_reward_model(number, out)
        if self.learner.reference is not None:
            self.learner.reference = load_reference(self.config, folder / model.MODEL, self.learner.policy.device)
        if METHODS[self.config.method].source == "sft":
            self.sync()
        log.logger().info("iteration %d of %d: the policy is the reference", number + 1, self.config.iterations)

    def _teach_reward_model(self, iteration: int, out: Path) -> None:
        """Algorithm 1, line 12: on the outputs of the iteration before, and on some of what it was trained on earlier."""
        reward = self.rewards.model
        if reward is None or reward.engine is None:
            return

        def written(steps: range) -> list[Any]:
            files = [file for step in steps for file in sorted((out / COMPLETIONS).glob(f"step-{step + 1:05d}-*.parquet"))]
            return read_completions(files, reward.kind, self.vocabulary)

        new = self._steps_of(iteration - 1)
        reward.learn(written(new), [*reward.trained_on, *written(range(new.start))], iteration - 1)

    def iteration_of(self, step: int) -> int:
        """Iteration of a step, both from 0; the last iterations are the longer ones."""
        return next(n for n in range(self.config.iterations) if step in self._steps_of(n))

    def _steps_of(self, iteration: int) -> range:
        steps, parts = self.config.num_steps, self.config.iterations
        return range(iteration * steps // parts, (iteration + 1) * steps // parts)


def make_engine(config: GrpoConfig, module: Any, lr: float) -> Any:
    """DeepSpeed's engine; how many micro-batches a step has is said step by step (learner.py)."""
    optimizer = optim.adamw(module, lr, (config.beta1, config.beta2), config.weight_decay)
    return optim.engine(module, optimizer, 1, config.max_grad_norm, config.zero_stage, config.bf16)


def load_reference(config: GrpoConfig, path: Path, device: torch.device) -> Policy:
    """A frozen policy; in main memory where it is off-loaded."""
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    reference = Policy(model.load(path, dtype)).eval().requires_grad_(False)
    return reference.to("cpu" if config.offload_reference else device)
