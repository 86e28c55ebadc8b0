"""Stage pretrain: a causal language model on a mixture of token sources, through DeepSpeed.

Documents stand one after another with EOS between them; a window is `context` consecutive tokens. Which windows a step trains on
follows from its number alone (mixture.py), so any number of processes sees the same batches. Result: `model/` in the transformers
layout, fp32, or with `bf16` in bf16.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mathpipe.pipeline import artifact, stage
from mathpipe.pretrain import loop, model, optim
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain.config import PretrainConfig, PretrainInputs
from mathpipe.pretrain.mixture import Mixture, document_numbers

MIN_HELD_OUT_TOKENS = 50_000
"""The held-out loss is measured on so many tokens, or on a step's where that is more; the sources share them equally."""
IGNORE = -100


def labels_of(ids_BT: Tensor, documents_BT: Tensor | None) -> Tensor:
    """Every token is a label; with isolated documents not the first of one, which nothing in its sight predicts."""
    if documents_BT is None:
        return ids_BT
    labels_BT = ids_BT.clone()
    labels_BT[:, 1:][documents_BT[:, 1:] != documents_BT[:, :-1]] = IGNORE
    return labels_BT


def step_batch(mixture: Mixture, step: int, rows: int) -> loop.Batch:
    """This process's windows of an optimizer step, in micro-batches of `rows`."""
    mine = mixture.batch(step, slice(optim.rank(), None, optim.world_size()))
    labels_BT = labels_of(mine.ids_BT, mine.documents_BT)
    num_windows = len(mine.source_B)
    documents = [None] * (num_windows // rows) if mine.documents_BT is None else mine.documents_BT.split(rows)
    parts = list(zip(mine.ids_BT.split(rows), labels_BT.split(rows), [None] * len(documents), documents, strict=True))
    labelled_B = (labels_BT[:, 1:] != IGNORE).sum(1).numpy()
    counted_S = optim.total_array(np.bincount(mine.source_B, labelled_B, len(mixture.sources)))
    sources = [mine.source_B[start : start + rows] for start in range(0, num_windows, rows)]
    return loop.Batch(parts, sources, counted_S, mine.ids_BT.numel() * optim.world_size())


@torch.no_grad()
def held_out_nats(engine: Any, data: np.ndarray, context: int, rows: int, eos: int | None = None) -> tuple[float, int]:
    """(summed -log p, predicted tokens) on the windows of these held-out tokens, EOS among them; processes share the windows.

    Every process makes as many forward passes (with ZeRO 3 they meet in each), the last ones on windows that do not count.

    Args:
        eos: ends a document, where documents are isolated as in training; None: attention crosses them.
    """
    width = min(context, len(data))
    count = len(data) // width
    ids_NT = torch.from_numpy(data[: count * width].astype(np.int64)).view(count, width)
    documents_NT = None if eos is None else torch.from_numpy(document_numbers(ids_NT.numpy(), eos))
    labels_NT = labels_of(ids_NT, documents_NT)
    num_predicted = int((labels_NT[:, 1:] != IGNORE).sum())
    per_pass = rows * optim.world_size()
    filling = (0, 0, 0, -count % per_pass)
    documents_NT = None if documents_NT is None else F.pad(documents_NT, filling)
    padded = (F.pad(ids_NT, filling), F.pad(labels_NT, filling, value=IGNORE), documents_NT)
    nats = 0.0
    for start in range(optim.rank() * rows, len(padded[0]), per_pass):
        ids, labels, documents = (None if part is None else part[start : start + rows].to(engine.device) for part in padded)
        nats += float(engine.module(ids, labels, None, documents).sum())
    return optim.total(nats), num_predicted


def held_out_figures(engine: Any, mixture: Mixture, config: PretrainConfig, rows: int) -> dict[str, float]:
    """Held-out loss in nats per token and bits per byte: of all sources' tokens together, and of each where there are several."""
    figures: dict[str, float] = {}
    sums = np.zeros(3)
    eos = mixture.eos if config.isolate else None
    most = max(MIN_HELD_OUT_TOKENS, config.batch_tokens) // len(mixture.sources)
    for source in mixture.sources:
        data = mixture.held_out(source)[: max(most, config.context)]
        if len(data) < 2:
            continue
        nats, count = held_out_nats(engine, data, config.context, rows, eos)
        here = np.array([nats, count, count * mixture.held_out_bytes_per_token(source)])
        sums += here
        if len(mixture.sources) > 1:
            figures |= {f"held_out_loss/{source}": nats / count, f"bits_per_byte/{source}": nats / math.log(2) / here[2]}
    return {"held_out_loss": sums[0] / sums[1], "bits_per_byte": sums[0] / math.log(2) / sums[2], **figures}


def start_model(config: PretrainConfig, vocabulary: Any) -> Any:
    """The model that training starts from.

    Raises:
        ContractError: it does not read the tokens of `vocabulary`, or windows as long as `context`.
    """
    if not config.start:
        return model.build(config, len(vocabulary), vocabulary.eos_token_id, vocabulary.pad_token_id)
    network = model.load(config.start, torch.bfloat16 if config.bf16 else torch.float32)
    bpe.require_same(config.start, vocabulary, network.get_input_embeddings().num_embeddings)
    model.require_context(config.start, network, config.context)
    return network


def run(config: PretrainConfig, inputs: PretrainInputs, out: Path) -> dict[str, Any]:
    """Train for `total_tokens`; facts: parameters, tokens, steps, epochs by source, held-out figures before and after."""
    mixture = Mixture(inputs.tokens, config)
    optim.start_processes(config.runtime)
    rows, micro_steps = optim.micro_batches(
        config.batch_tokens // config.context, config.micro_batch_tokens // config.context, f"batch_tokens {config.batch_tokens}"
    )
    vocabulary = bpe.load(inputs.tokenizer / "tokenizer")
    network = start_model(config, vocabulary)
    num_parameters = network.num_parameters()
    engine = loop.make_engine(network, config, config.peak_lr, micro_steps)
    job = loop.Job(
        phase="pretrain", num_steps=config.num_steps, peak_lr=config.peak_lr, context=config.context, sources=mixture.sources,
        batch=lambda step: step_batch(mixture, step, rows),
        evaluate=lambda: held_out_figures(engine, mixture, config, rows), eval_every=config.eval_every,
        describe=lambda step: {"tokens": step * config.batch_tokens} | {f"epochs/{s}": n for s, n in mixture.epochs(step).items() if n},
    )  # fmt: skip
    facts = loop.train(engine, network, vocabulary, job, config, out)
    measured = [row for row in artifact.read_metrics(out) if "held_out_loss" in row] if optim.rank() == 0 else []
    return {
        "num_parameters": num_parameters, **facts, "num_tokens": config.num_steps * config.batch_tokens,
        "num_corpus_tokens": sum(len(data) for data in mixture.train.values()), "epochs": mixture.epochs(config.num_steps),
        "held_out": {"before": measured[0], "after": measured[-1]} if measured else None,
    }  # fmt: skip


if __name__ == "__main__":
    stage.main(run)
