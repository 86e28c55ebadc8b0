"""Stage sft: fine-tune the pre-trained model on CoT, PoT and tool-integrated examples, packed, loss on answers only.

The first process tokenises the examples once; all read them memory-mapped. Which rows a step trains on follows from its number
alone; from the second pass over the rows on they come in another order.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mathpipe.pipeline import artifact, log, stage
from mathpipe.pretrain import loop, model, optim
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.sft import packing, schema
from mathpipe.sft.config import SftConfig, SftInputs

ENCODED = "encoded"


def rows_of_step(num_rows: int, step: int, per_step: int, seed: int) -> np.ndarray:
    """Numbers of the rows of a step: places in an endless sequence of passes, the first one in the order of packing.

    >>> rows_of_step(5, 0, 4, seed=0).tolist()
    [0, 1, 2, 3]
    """
    places = np.arange(step * per_step, (step + 1) * per_step)
    rows = places % num_rows
    for number in np.unique(places // num_rows):
        here = places // num_rows == number
        if number:
            rows[here] = np.random.default_rng([seed, number]).permutation(num_rows)[rows[here]]
    return rows


def step_batch(config: SftConfig, encoded: packing.Encoded, rows: packing.Rows, step: int, size: int, pad: int) -> loop.Batch:
    """This process's rows of an optimizer step, in micro-batches of `size`."""
    numbers = rows_of_step(len(rows), step, config.batch_sequences, config.seed)[optim.rank() :: optim.world_size()]
    parts, counts = [], np.zeros(2)
    for start in range(0, len(numbers), size):
        batch = packing.collate(encoded, [rows[n] for n in numbers[start : start + size]], config.context, pad)
        # given restarting positions and no mask, transformers would isolate examples by itself, so crossing is asked for by a mask too
        documents = batch.documents if config.isolate else batch.documents.clamp(max=0)
        parts.append((batch.ids, batch.labels, batch.positions, documents))
        counts += [int((batch.labels[:, 1:] != packing.IGNORE).sum()), int((batch.documents >= 0).sum())]
    counted, num_tokens = optim.total_array(counts)
    sources = [np.zeros(len(part[0]), np.int64) for part in parts]
    return loop.Batch(parts, sources, np.array([counted]), int(num_tokens))


def encode_once(inputs: SftInputs, vocabulary: Any, out: Path) -> packing.Encoded:
    """The tokenised examples, made by the first process where they are not there yet."""
    folder = out / ENCODED
    if optim.rank() == 0 and not (folder / "starts.npy").exists():
        packing.encode(schema.load(inputs.examples, inputs.clean), vocabulary).save(folder)
    dist.barrier()
    return packing.Encoded.open(folder)


def log_figures(figures: dict[str, dict[str, float]], chosen: str) -> None:
    """The packings side by side."""
    for name, values in figures.items():
        text = f"{values['num_rows']:>9,.0f} rows  {100 * values['padding_frac']:6.2f} % padding  "
        text += f"{100 * values['too_long_frac']:.2f} % of examples too long  {100 * values['lost_tokens_frac']:.2f} % of tokens lost"
        log.logger().info("packing %-7s %s%s", name, text, "  (used)" if name == chosen else "")


def run(config: SftConfig, inputs: SftInputs, out: Path) -> dict[str, Any]:
    """Fine-tune; facts: examples, packing figures, steps, first and last loss, bounds of the generated family."""
    family = artifact.read_manifest(inputs.examples)
    optim.start_processes(config.runtime)
    is_main = optim.rank() == 0
    size, micro_steps = optim.micro_batches(
        config.batch_sequences, config.micro_batch_sequences, f"sft.batch_sequences {config.batch_sequences}"
    )
    start = inputs.pretrain / model.MODEL
    vocabulary = bpe.load(start)
    encoded = encode_once(inputs, vocabulary, out)
    rows, too_long = packing.pack(encoded.lengths, config.context, config.packing, config.too_long, config.seed)
    if len(rows) < config.batch_sequences:
        found = f"{len(encoded.lengths)} examples pack into {len(rows)} rows"
        raise ValueError(f"{found}, fewer than sft.batch_sequences {config.batch_sequences}; raise examples.num_examples, or add sources")
    figures = packing.figures(encoded.lengths, config.context, config.too_long, config.seed) if is_main else {}
    log_figures(figures, config.packing)
    network = model.load(start, torch.bfloat16 if config.bf16 else torch.float32)
    model.require_context(start, network, config.context)
    engine = loop.make_engine(network, config, config.lr, micro_steps)
    job = loop.Job(
        phase="sft", num_steps=config.num_steps or len(rows) // config.batch_sequences, peak_lr=config.lr, context=config.context,
        batch=lambda step: step_batch(config, encoded, rows, step, size, vocabulary.pad_token_id),
    )  # fmt: skip
    facts = loop.train(engine, network, vocabulary, job, config, out)
    if is_main:
        shutil.rmtree(out / ENCODED)
    metrics: Sequence[dict[str, Any]] = artifact.read_metrics(out) if is_main else []
    return {
        "num_examples": len(encoded.lengths), "num_too_long": len(too_long), "num_rows": len(rows), "num_tokens": int(encoded.starts[-1]),
        "packing": figures, **facts, "max_number": family["max_number"], "max_result": family["max_result"],
        "loss": {"before": metrics[0]["loss"], "after": metrics[-1]["loss"]} if metrics else None,
    }  # fmt: skip


if __name__ == "__main__":
    stage.main(run)
