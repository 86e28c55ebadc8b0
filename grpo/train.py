"""Stage grpo: reinforcement of the SFT model (section 4, algorithm 1).

Per step: sample a group for each question with the current weights, reward every output or its steps, normalise, one update
(so the old policy is the policy itself and the ratio is 1 where the gradient is taken: a loss of 0 is right there). Per iteration:
the reference becomes the policy, and the reward model, where there is one, goes on training on the outputs of the iteration
before with some of the earlier ones.

    model/                            the policy after the last step
    iterations/1/model/               after each iteration but the last
    completions/step-00001-0.parquet  every completion of a step, one file a process
    held_out.parquet                  accuracy of each held-out question before and after; `prompt` is what evaluation asks (cot)

Deviations from the paper, all in the config: learning rate, number of questions and steps, and by default a rule instead of a
reward model (figure 5's family names that a rule).
"""

from __future__ import annotations

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mathpipe.grpo import groups
from mathpipe.grpo.config import GrpoConfig, GrpoInputs
from mathpipe.grpo.held_out import HeldOut, paired_bootstrap
from mathpipe.grpo.methods import METHODS
from mathpipe.grpo.questions import Questions, collect
from mathpipe.grpo.rollout import Rollout, drop_after, explore
from mathpipe.grpo.trainer import COMPLETIONS, Trainer
from mathpipe.grpo.watch import CollapseWatch
from mathpipe.pipeline import artifact, log, stage
from mathpipe.pretrain import checkpoint, model, optim
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain.watch import peak_memory_gb
from mathpipe.sft.prompts import render

BEFORE = "held_out_before.json"
SINGLE = ("grad_norm", "skipped", "updates")
"""Figures that are the same on every process."""


def run(config: GrpoConfig, inputs: GrpoInputs, out: Path) -> dict[str, Any]:
    """Train; facts: `held_out` accuracies before and after with a paired bootstrap, counts, settings that matter."""
    family = artifact.read_manifest(inputs.sft)
    device = optim.start_processes(config.runtime)
    if config.questions_per_step % optim.world_size():
        raise ValueError(f"grpo.questions_per_step {config.questions_per_step} must be a multiple of {optim.world_size()} processes")
    start = inputs.sft / model.MODEL
    vocabulary = bpe.load(start)
    fits = partial(groups.fits, config, vocabulary)
    questions = collect(config, (family["max_number"], family["max_result"]), inputs.examples, inputs.clean, fits)
    trainer = Trainer.make(config, inputs, vocabulary, device)
    held_out = HeldOut.make(config, questions.held_out, vocabulary, trainer.rewards)
    first, _ = checkpoint.load(trainer.learner.policy, out, trainer.further())
    try:
        facts = _train(trainer, questions, held_out, first, out)
    finally:
        trainer.close()
    return facts | {
        "num_steps": config.num_steps, "num_questions": config.num_steps * config.questions_per_step,
        "num_prompts_too_long": questions.num_too_long, "num_processes": optim.world_size(), "sampler": config.sampler,
        "num_samples": config.num_steps * config.questions_per_step * config.group_size, "method": config.method,
        "supervision": config.supervision, "iterations": config.iterations, "max_number": family["max_number"],
    }  # fmt: skip


def _train(trainer: Trainer, questions: Questions, held_out: HeldOut, first: int, out: Path) -> dict[str, Any]:
    """Every step from `first`, and the accuracies around them."""
    config, learner, is_main = trainer.config, trainer.learner, optim.rank() == 0
    before = _measure_before(trainer, held_out, out)
    if is_main:
        artifact.truncate_metrics(out, first or -1)
        drop_after(out / COMPLETIONS, first)
        if first == 0:
            artifact.append_metrics(out, step=0, **{f"{kind}_accuracy": float(np.mean(values)) for kind, values in before.items()})
        log.logger().info(
            "%s, %s supervision, advantages %s (ddof %d, eps %g), loss %s, KL %s × %g, group %d", config.method, config.supervision,
            config.advantage, config.std_ddof, config.std_eps, config.loss, config.kl, config.kl_coef, config.group_size,
        )  # fmt: skip
        if config.updates_per_exploration == 1 and METHODS[config.method].source == "policy":
            log.logger().info("one update per exploration: the ratio is 1 and a loss near 0 is right; reward and gradient norm tell")
    iteration = trainer.iteration_of(max(first - 1, 0))
    trainer.begin_iteration(iteration, out, resumed=True)
    trainer.sync()
    progress = log.Progress(out, config.num_steps, "steps", "grpo", first) if is_main else None
    watch = CollapseWatch(config, [row for row in artifact.read_metrics(out) if "reward" in row] if is_main else ())
    for step in range(first, config.num_steps):
        began = time.perf_counter()
        if trainer.iteration_of(step) != iteration:
            iteration = trainer.iteration_of(step)
            trainer.begin_iteration(iteration, out, resumed=False)
        lr = config.lr * optim.lr_factor(config.schedule, step, config.num_steps, config.warmup_steps)
        optim.set_lr(learner.policy.basic_optimizer, lr)
        rollout = explore(config, trainer.sampler, trainer.rewards, trainer.vocabulary, questions, step)
        sums, advantages = learner.learn(rollout, step)
        synced = time.perf_counter()
        if METHODS[config.method].source == "policy":
            trainer.sync()
        done, ended = step + 1, time.perf_counter()
        rollout.save(out / COMPLETIONS / f"step-{done:05d}-{optim.rank()}.parquet", done, advantages)
        values = step_metrics(rollout, sums) | learner.seconds
        values |= {"sample_s": rollout.sample_s, "reward_s": rollout.reward_s, "sync_s": ended - synced, "step_s": ended - began}
        values |= {"lr": lr, "peak_memory_gb": peak_memory_gb(learner.policy.device)}
        note = ""
        if done % config.eval_every == 0 and done < config.num_steps:
            values["greedy_accuracy"] = float(trainer.accuracy(held_out, 1, 0.0).mean())
            note = f"  held-out greedy {values['greedy_accuracy']:.3f}"
        if is_main and progress:
            artifact.append_metrics(out, step=done, **{name: value for name, value in values.items() if math.isfinite(value)})
            for warning in watch.step(values):
                log.logger().warning("%s", warning)
            norm = f"  gradient {values['grad_norm']:.3f}" if "grad_norm" in values else ""
            progress.advance(1, f"reward {values['reward']:.3f}  kl {values.get('kl', 0.0):.4f}{norm}{note}")
        if done % config.checkpoint_every == 0 and done < config.num_steps:
            checkpoint.save(learner.policy, out, done, write_model=trainer.write_model, further=trainer.further())
    after = trainer.accuracies(held_out)
    facts = _held_out_facts(before, after)
    trainer.write_model(out)
    if is_main:
        artifact.append_metrics(out, step=config.num_steps, **{f"{kind}_accuracy": facts[kind]["after"] for kind in after})
        _save_held_out(out, held_out, before, after)
        log.logger().info("held-out sampled %s, greedy %s", facts["sampled"], facts["greedy"])
    return {"held_out": facts}


def _measure_before(trainer: Trainer, held_out: HeldOut, out: Path) -> dict[str, list[float]]:
    """Held-out accuracy of the SFT model per question, sampled and greedy; kept in a file across restarts."""
    file = out / BEFORE
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    log.logger().info("held-out accuracy of the SFT model, %d questions", len(held_out.questions))
    before = trainer.accuracies(held_out)
    if optim.rank() == 0:
        artifact.write_json(file, before)
    return before


def step_metrics(rollout: Rollout, sums: dict[str, float]) -> dict[str, float]:
    """Means of one step over all processes; `grad_norm`, `skipped` and what ends in `_max` are not summed."""
    here = rollout.summary() | {name: value for name, value in sums.items() if name not in SINGLE and not name.endswith("_max")}
    all_of = {name: optim.total(value) for name, value in here.items()}
    samples, groups, tokens = all_of["samples"], all_of["groups"], max(all_of.get("tokens", 0.0), 1.0)
    updates = max(sums.get("updates", 0.0), 1.0)
    values = {
        "reward": all_of["reward"] / max(all_of["rewarded"], 1), "reward_std": all_of["reward_std"] / groups,
        "response_tokens": all_of["response_tokens"] / samples, "truncated_frac": all_of["truncated"] / samples,
        "zero_std_frac": all_of["zero_std"] / groups, "distinct_frac": all_of["distinct"] / samples,
        "distinct_text_frac": all_of["distinct_text"] / samples, "duplicates": all_of["duplicates"], "refilled": all_of["refilled"],
    }  # fmt: skip
    values |= {name: all_of[name] / updates for name in ("loss", "value_loss") if name in all_of}
    per_token = {"kl": "kl", "entropy": "entropy", "clipped": "clipped_frac", "capped": "capped_frac", "logp_diff": "logp_diff_mean"}
    values |= {called: all_of[name] / tokens for name, called in per_token.items() if name in all_of}
    values |= {name: optim.highest(value) for name, value in sums.items() if name.endswith("_max")}
    values |= {name: sums[name] / updates for name in SINGLE if name in sums}
    return values | {name: count for name, count in all_of.items() if name.startswith("reason_")}


def _held_out_facts(before: dict[str, list[float]], after: dict[str, list[float]]) -> dict[str, Any]:
    means = {kind: {"before": float(np.mean(before[kind])), "after": float(np.mean(after[kind]))} for kind in ("sampled", "greedy")}
    greedy = means["greedy"] | {"p_value": paired_bootstrap(np.array(before["greedy"]), np.array(after["greedy"]))}
    return {"n": len(before["greedy"]), "sampled": means["sampled"], "greedy": greedy}


def _save_held_out(out: Path, held_out: HeldOut, before: dict[str, list[float]], after: dict[str, list[float]]) -> None:
    rows = [
        {"question": one.question, "answer": one.answer, "prompt": render(one.question), "sampled_before": before["sampled"][n],
         "sampled_after": after["sampled"][n], "greedy_before": before["greedy"][n], "greedy_after": after["greedy"][n]}
        for n, one in enumerate(held_out.questions)
    ]  # fmt: skip
    artifact.write_parquet(out / "held_out.parquet", pa.Table.from_pylist(rows))


if __name__ == "__main__":
    stage.main(run)
