"""Benchmarks of SFT's data: running programs, tokenising, packing as many examples as the paper has."""

from __future__ import annotations

import random
import resource
import time

import numpy as np

from mathpipe.eval.sandbox import Sandbox
from mathpipe.pipeline.bench import Benchmark, Row, row
from mathpipe.pretrain.tokenizer import train
from mathpipe.sft import packing
from mathpipe.sft.generated import make_examples
from mathpipe.sft.schema import Example, Segment
from mathpipe.sft.verify import OK, verify

NUM_PAPER, CONTEXT = 776_000, 4096
"""Examples of section 3.1, tokens of section 3.2."""
SYMPY = "from sympy import symbols, Eq, solve\nx, y = symbols('x y')\nprint(solve((Eq(x + y, {n}), Eq(x / y, 2)), (x, y))[y])"


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _verify_cpu_s(examples: list[Example]) -> float:
    """CPU seconds of a sandbox, its start included."""
    began = _children_cpu_s()
    with Sandbox(num_workers=1) as sandbox:
        assert all(verdict == OK for _, verdict, _ in verify(examples, sandbox))
    return _children_cpu_s() - began


def programs_per_s() -> list[Row]:
    """Programs verified per CPU second of their worker and its forks: small ones, and ones that solve equations with sympy."""
    small = list(make_examples(500, {"pot": 1.0}, 0, 12, 100))
    sympy = [Example("?", (Segment("code", SYMPY.format(n=3 * n)),), str(n), "pot", "bench") for n in range(1, 101)]
    start = _verify_cpu_s(small[:1])
    rates = [len(examples) / (_verify_cpu_s(examples) - start) for examples in (small, sympy)]
    goal = "at least 50 per core"
    return [
        row("sft.programs_per_s.small", rates[0], "programs/CPU s", goal, rates[0] >= 50),
        row("sft.programs_per_s.sympy", rates[1], "programs/CPU s", "measured", True),
    ]


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
    "sft.programs_per_s": programs_per_s, "sft.encode_examples_per_s": encode_examples_per_s, "sft.pack_seconds": pack_seconds,
}  # fmt: skip
