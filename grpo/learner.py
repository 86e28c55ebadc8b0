"""The update: what the models say of the sampled tokens, and the optimizer steps of policy and value model.

Everything is computed in micro-batches of packed outputs. Weights of tokens know the whole exploration over all processes, so
micro-batches, packing and the number of processes do not matter.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mathpipe.grpo import credit
from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.credit import Ragged
from mathpipe.grpo.loss import Tokens, policy_loss, token_weights, value_loss
from mathpipe.grpo.methods import METHODS
from mathpipe.grpo.packed import Packed, micro_batches, pack
from mathpipe.grpo.policy import Policy
from mathpipe.grpo.rollout import Rollout
from mathpipe.grpo.sampler import Response, eval_mode
from mathpipe.pretrain import optim


@dataclass
class Learner:
    """The models that an exploration trains or asks."""

    config: GrpoConfig
    policy: Any
    """DeepSpeed engine around a Policy."""
    reference: Policy | None
    """Frozen; None without a KL to it."""
    critic: Any = None
    """DeepSpeed engine around a Scorer (PPO)."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of the last update: reference_s, update_s."""

    def learn(self, rollout: Rollout, step: int) -> tuple[dict[str, float], list[Tensor]]:
        """All optimizer steps on one exploration; (sums over this process for the log, advantages of the tokens)."""
        config, outputs = self.config, rollout.outputs
        parts = micro_batches(outputs, config.micro_batch_tokens)
        began = time.perf_counter()
        reference = self._ask_reference(outputs, parts)
        asked = time.perf_counter()
        logp = self._ask(outputs, parts, lambda packed, heat: self.policy(packed, heat)[0], self.policy) if self._needs_logp() else None
        values: list[Tensor] | None = None
        returns: list[Tensor] | None = None
        if self.critic is not None:
            assert logp is not None
            values = self._ask(outputs, parts, lambda packed, heat: self.critic(packed, before=True), self.critic)
            advantages, returns = credit.generalised_advantages(config, rollout, values, logp, reference)
        else:
            advantages = credit.advantages(config, rollout, logp, reference)
        lengths = torch.tensor([len(one.ids) for one in outputs])
        num_outputs, num_tokens = optim.total(len(outputs)), optim.total(int(lengths.sum()))
        weights = token_weights(lengths, config.loss, int(num_outputs), int(num_tokens), config.max_new_tokens)
        sums: dict[str, float] = {}
        for _ in range(config.updates_per_exploration):
            if values is not None and returns is not None:
                found = self._update_critic(outputs, parts, values, returns, weights)
                _add(sums, found)
            if step >= config.value_warmup_steps or self.critic is None:
                _add(sums, self._update_policy(outputs, parts, weights, advantages, logp, reference))
        self.seconds = {"reference_s": asked - began, "update_s": time.perf_counter() - asked}
        return sums, advantages

    def _needs_logp(self) -> bool:
        """Whether the policy's log-probabilities are needed before its first update; else they are those of that update itself."""
        config = self.config
        if METHODS[config.method].is_likelihood:
            return config.method == "dpo"
        return config.updates_per_exploration > 1 or self.critic is not None or config.kl == "k1_reward"

    def _ask_reference(self, outputs: Sequence[Response], parts: list[list[int]]) -> list[Tensor] | None:
        reference = self.reference
        if reference is None or not needs_reference(self.config):
            return None
        with on_device(reference, self.policy.device, self.config.offload_reference):
            return self._ask(outputs, parts, lambda packed, heat: reference(packed, heat)[0], reference)

    @torch.no_grad()
    def _ask(
        self, outputs: Sequence[Response], parts: list[list[int]], function: Callable[[Packed, Tensor], Tensor], module: Any
    ) -> list[Tensor]:
        """What a model says of every response token, without gradient, on the CPU."""
        found: list[Tensor] = [torch.empty(0)] * len(outputs)
        with eval_mode(module):
            for part in parts:
                packed, heat = self._pack([outputs[n] for n in part])
                values = function(packed, heat).cpu().split([len(outputs[n].ids) for n in part])
                for n, value in zip(part, values, strict=True):
                    found[n] = value
        return found

    def _pack(self, outputs: Sequence[Response]) -> tuple[Packed, Tensor]:
        """The outputs packed, and the temperature of each of their tokens, `[M]`."""
        packed = pack([one.prompt for one in outputs], [one.ids for one in outputs]).to(self.policy.device)
        heat = torch.tensor([one.temperature for one in outputs], device=self.policy.device)
        return packed, heat[packed.output_M]

    def _update_policy(
        self, outputs: Sequence[Response], parts: list[list[int]], weight_N: Tensor, advantages: Ragged, logp: Ragged | None,
        reference: Ragged | None,
    ) -> dict[str, float]:  # fmt: skip
        """One optimizer step over all micro-batches."""
        config, device, sums = self.config, self.policy.device, dict[str, float]()
        is_likelihood = METHODS[config.method].is_likelihood
        self.policy.train()
        for number, part in enumerate(parts):
            self.policy.set_gradient_accumulation_boundary(number == len(parts) - 1)
            packed, heat = self._pack([outputs[n] for n in part])
            mine, entropy = self.policy(packed, heat, with_entropy=True)
            sampled = [value for n in part for value in outputs[n].logp] if METHODS[config.method].source == "policy" else None
            tokens = Tokens(
                logp_M=mine,
                old_M=mine.detach() if logp is None or is_likelihood else _join(logp, part, device),
                reference_M=_join(reference, part, device) if reference is not None and not is_likelihood else None,
                sampler_M=None if sampled is None else torch.tensor(sampled, device=device),
                advantage_M=_join(advantages, part, device),
                weight_M=weight_N[part].to(device)[packed.output_M],
                output_M=packed.output_M,
            )
            loss, found = policy_loss(tokens, config)
            self.policy.backward(optim.scaled(loss, 1))
            norm = optim.step(self.policy)
            _add(sums, found | {"entropy": float(entropy.sum()), "tokens": len(mine)})
        assert norm is not None, "the engine expected more micro-batches"
        return sums | {"grad_norm": norm, "skipped": float(not math.isfinite(norm)), "updates": 1.0}

    def _update_critic(
        self, outputs: Sequence[Response], parts: list[list[int]], values: Ragged, returns: Ragged, weight_N: Tensor
    ) -> dict[str, float]:
        """One optimizer step of the value model."""
        device, sums = self.critic.device, dict[str, float]()
        self.critic.train()
        for number, part in enumerate(parts):
            self.critic.set_gradient_accumulation_boundary(number == len(parts) - 1)
            packed, _ = self._pack([outputs[n] for n in part])
            value_M = self.critic(packed, before=True)
            weight_M = weight_N[part].to(device)[packed.output_M]
            old_M, return_M = (_join(ragged, part, device) for ragged in (values, returns))
            loss, found = value_loss(value_M, old_M, return_M, weight_M, self.config.value_clip)
            self.critic.backward(optim.scaled(loss, 1))
            optim.step(self.critic)
            _add(sums, found)
        return sums


def needs_reference(config: GrpoConfig) -> bool:
    """Whether the reference's log-probabilities take part in the update."""
    return config.method == "dpo" or (config.kl_coef > 0 and not METHODS[config.method].is_likelihood)


def _join(ragged: Ragged, part: Sequence[int], device: torch.device) -> Tensor:
    return torch.cat([ragged[n] for n in part]).to(device)


def _add(sums: dict[str, float], found: dict[str, float]) -> None:
    for name, value in found.items():
        sums[name] = max(sums.get(name, -math.inf), value) if name.endswith("_max") else sums.get(name, 0.0) + value


@contextlib.contextmanager
def on_device(module: nn.Module, device: torch.device, offload: bool) -> Iterator[None]:
    """The module on a device; with `offload` it goes back to main memory after."""
    if not offload:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to("cpu")
        if device.type == "cuda":
            torch.cuda.empty_cache()
