"""Stage sft: fine-tune the pre-trained model on CoT, PoT and tool-integrated examples, packed, loss on answers only."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from mathpipe.pipeline import artifact, log, stage
from mathpipe.pretrain import checkpoint, model, optim
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.sft import packing
from mathpipe.sft.config import SftConfig, SftInputs
from mathpipe.sft.examples import Example, make_examples
from mathpipe.sft.verify import run_programs


def check_programs(examples: list[Example]) -> int:
    """Number of PoT and TIR programs, each of which was run and printed its example's answer.

    Raises:
        RuntimeError: one did not; it names the program.
    """
    checked = [example for example in examples if example.program is not None]
    for example, (printed, error) in zip(checked, run_programs([e.program or "" for e in checked]), strict=True):
        if error or printed != example.answer:
            raise RuntimeError(f"{example.question!r} printed {printed!r} ({error}), not {example.answer}:\n{example.program}")
    return len(checked)


def save_examples(out: Path, examples: list[Example]) -> None:
    """Write `data/examples.parquet`: url, text, kind, question, answer."""
    rows = [
        {"url": f"generated/{n}", "text": e.prompt + e.text, "kind": e.kind, "question": e.question, "answer": e.answer}
        for n, e in enumerate(examples)
    ]
    artifact.write_parquet(out / "data" / "examples.parquet", pa.Table.from_pylist(rows))


def run(config: SftConfig, inputs: SftInputs, out: Path) -> dict[str, Any]:
    """Fine-tune; facts: examples by format, packing figures, steps, first and last loss."""
    device = optim.start_processes(config.runtime)
    is_main, processes = optim.rank() == 0, optim.world_size()
    if config.batch_sequences % processes:
        raise ValueError(f"sft.batch_sequences {config.batch_sequences} must be a multiple of {processes} processes")
    vocabulary = bpe.load(inputs.pretrain / model.MODEL)
    fractions = {"cot": config.cot_frac, "pot": config.pot_frac, "tir": config.tir_frac}
    examples = make_examples(config.num_examples, fractions, config.seed, config.max_number, config.max_result)
    num_verified = 0
    if is_main:
        num_verified = check_programs(examples)
        save_examples(out, examples)
    encoded = [packing.encode_example(example, vocabulary) for example in examples]
    lengths = [len(e.ids) for e in encoded]
    order = list(range(len(encoded)))
    random.Random(config.seed).shuffle(order)
    sequences, too_long = packing.pack(lengths, config.context, order)
    if len(sequences) < config.batch_sequences:
        found = f"{len(examples)} examples pack into {len(sequences)} sequences"
        raise ValueError(f"{found}, fewer than sft.batch_sequences {config.batch_sequences}; raise sft.num_examples")
    num_steps = config.num_steps or len(sequences) // config.batch_sequences

    network = model.load(inputs.pretrain / model.MODEL)
    loss_of = model.TokenLoss(network).to(device)
    per_process = config.batch_sequences // processes
    micro_steps = math.ceil(per_process / config.micro_batch_sequences)
    optimizer = optim.adamw(loss_of, config.lr, (config.beta1, config.beta2), config.weight_decay)
    engine = optim.engine(loss_of, optimizer, micro_steps, config.max_grad_norm, config.zero_stage, config.bf16)
    first = checkpoint.load(engine, out)
    if is_main:
        artifact.truncate_metrics(out, first)
        log.logger().info("%d packed sequences, %d steps, %d examples too long", len(sequences), num_steps, len(too_long))
    progress = log.Progress(out, num_steps, "steps", "sft", first) if is_main else None
    for step in range(first, num_steps):
        lr = config.lr * optim.lr_factor(config.schedule, step, num_steps, config.warmup_steps)
        optim.set_lr(optimizer, lr)
        chosen = [sequences[(step * config.batch_sequences + n) % len(sequences)] for n in range(config.batch_sequences)]
        batch = [[encoded[number] for number in sequence] for sequence in chosen]
        counted = sum(label != packing.IGNORE for sequence in batch for e in sequence for label in e.labels[1:])
        mine = batch[optim.rank() :: processes]
        nats = 0.0
        size = math.ceil(len(mine) / micro_steps)
        for start in range(0, len(mine), size):
            loss = _loss(engine, packing.collate(mine[start : start + size], vocabulary.pad_token_id), config.isolate, device)
            engine.backward(optim.scaled(loss / counted, micro_steps))
            norm = optim.step(engine)
            nats += float(loss.detach())
        mean, done = optim.total(nats) / counted, step + 1
        if not math.isfinite(mean):
            raise ValueError(f"loss is {mean} at step {done}; lower sft.lr (now {config.lr})")
        if progress:
            if done == 1 or done % config.runtime.log_interval == 0 or done == num_steps:
                artifact.append_metrics(out, step=done, loss=mean, lr=lr, grad_norm=norm, answer_tokens=counted)
            progress.advance(1, f"loss {mean:.4f}")
        if done % config.checkpoint_every == 0 and done < num_steps:
            checkpoint.save(engine, out, done)
    if is_main:
        model.save(network, vocabulary, out)
    checkpoint.clear(out)
    metrics = artifact.read_metrics(out) if is_main else []
    packed_tokens = sum(lengths) - sum(lengths[n] for n in too_long)
    return {
        "num_examples": dict(Counter(e.kind for e in examples)), "num_verified_programs": num_verified, "num_too_long": len(too_long),
        "num_sequences": len(sequences), "padding_frac": 1 - packed_tokens / (len(sequences) * config.context), "num_steps": num_steps,
        "num_processes": processes, "max_number": config.max_number, "max_result": config.max_result,
        "loss": {"before": metrics[0]["loss"], "after": metrics[-1]["loss"]} if metrics else None,
    }  # fmt: skip


def _loss(engine: Any, batch: packing.Batch, isolate: bool, device: Any) -> Tensor:
    # given restarting positions and no mask, transformers would isolate examples by itself, so crossing is asked for by a mask too
    documents = batch.documents if isolate else batch.documents.clamp(max=0)
    return engine(batch.ids.to(device), batch.labels.to(device), batch.positions.to(device), documents.to(device)).sum()


if __name__ == "__main__":
    stage.main(run)
