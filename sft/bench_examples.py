"""Benchmarks of SFT's data: tokenising, packing as many examples as the paper has. Running programs is eval/bench_sandbox.py's."""

from __future__ import annotations

import random
import time

import numpy as np

from mathpipe.pipeline.bench import Benchmark, Row, row
from mathpipe.pretrain.tokenizer import train
from mathpipe.sft import packing
from mathpipe.sft.generated import make_examples

NUM_PAPER, CONTEXT = 776_000, 4096
"""Examples of section 3.1, tokens of section 3.2."""


def encode_examples_per_s() -> Row:
    """Examples tokenised into arrays per CPU second of all threads."""
    examples = list(make_examples(10_000, {"cot": 0.8, "pot": 0.1, "tir": 0.1}, 0, 12, 100))
    tokenizer = train([e.text for e in examples[:1000]], 1024)
    began = time.process_time()
    encoded = packing.encode(examples, tokenizer)
    rate = len(encoded.lengths) / (time.process_time() - began)
    left = f"{NUM_PAPER:,} examples in {NUM_PAPER / rate / 60:.1f} min"
    return row("sft.encode_examples_per_s", rate, "examples/CPU s", left, True)


def pack_seconds() -> list[Row]:
    """CPU seconds and share of padding of the packings of the paper's number of examples; lengths log-normal around 250 tokens."""
    rng = random.Random(0)
    lengths = np.array([min(CONTEXT, int(rng.lognormvariate(5.5, 0.7)) + 1) for _ in range(NUM_PAPER)])
    rows = []
    for name in ("shuffle", "bfd"):
        began = time.process_time()
        packed, _ = packing.pack(lengths, CONTEXT, name, "drop", 0)
        seconds = time.process_time() - began
        padding = 100 * (1 - lengths.sum() / len(packed) / CONTEXT)
        rows.append(row(f"sft.pack_seconds.{name}", seconds, "CPU s", f"within 10 s; {padding:.2f} % padding", seconds <= 10))
    return rows


BENCHMARKS: dict[str, Benchmark] = {
    "sft.encode_examples_per_s": encode_examples_per_s, "sft.pack_seconds": pack_seconds,
}  # fmt: skip
