"""Benchmarks of SFT: padding by packing, and useful tokens per second beside TRL's SFTTrainer."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mathpipe.pipeline.bench import Benchmark, Racer, Row, done, race, row, wait
from mathpipe.pipeline.config import Runtime
from mathpipe.pretrain import model, optim
from mathpipe.pretrain.tokenizer import train
from mathpipe.sft import packing, readers
from mathpipe.sft.generated import make_examples
from mathpipe.sft.schema import Example

HERE = "mathpipe.sft.bench"
STEP_TOKENS, STEPS = 2048, 16
CONTEXT = {"generated": 512, "gsm8k": 1024}
"""Of a row; a step has 2,048 tokens of either set."""
NUM_EXAMPLES = 2000
PAPER_CONTEXT = 4096
SHARED = Path(os.environ.get("MATHPIPE_SHARED", Path(__file__).parents[2] / "shared"))


def generated() -> list[Example]:
    """The family that profile tiny learns, in the three formats."""
    return list(make_examples(NUM_EXAMPLES, {"cot": 0.8, "pot": 0.1, "tir": 0.1}, 0, 12, 100))


def gsm8k() -> list[Example]:
    """GSM8K's training split."""
    file = SHARED / "data" / "benchmarks" / "gsm8k" / "train.jsonl"
    if not file.exists():
        raise FileNotFoundError(f"{file}: GSM8K's training split is not there; set MATHPIPE_SHARED to the folder that has data/")
    return [readers.gsm8k(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def prepared(source: str) -> tuple[Any, packing.Encoded, Any]:
    """Tokenizer, encoded examples that fit a row, and a model of 5M parameters without embeddings; the same in every process."""
    examples = {"generated": generated, "gsm8k": gsm8k}[source]()[:NUM_EXAMPLES]
    tokenizer = train([example.text for example in examples], 1024)
    fits = packing.encode(examples, tokenizer).lengths <= CONTEXT[source]
    examples = [example for example, fit in zip(examples, fits, strict=True) if fit]
    config = model.PretrainConfig(hidden_size=256, intermediate_size=688, num_layers=6, num_heads=4)
    network = model.build(config, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    return tokenizer, packing.encode(examples, tokenizer), network


def our_steps(source: str) -> Iterator[int]:
    """Steps as the stage sft does them: packed, isolated, through DeepSpeed's engine; yields the tokens that are no padding."""
    optim.start_processes(Runtime(device="cpu", num_threads=torch.get_num_threads()))
    tokenizer, encoded, network = prepared(source)
    context = CONTEXT[source]
    size = STEP_TOKENS // context
    rows, _ = packing.pack(encoded.lengths, context, "shuffle", "drop", 0)
    loss_of = model.TokenLoss(network)
    engine = optim.engine(loss_of, optim.adamw(loss_of, 1e-4, (0.9, 0.95), 0.1), 1, 1.0)
    for step in range(STEPS):
        batch = packing.collate(encoded, rows[step * size : (step + 1) * size], context, tokenizer.pad_token_id)
        counted = int((batch.labels != packing.IGNORE).sum())
        engine.backward(optim.scaled(engine(batch.ids, batch.labels, batch.positions, batch.documents).sum() / counted, 1))
        optim.step(engine)
        yield int((batch.documents >= 0).sum())


def trl_steps(source: str, packed: bool) -> None:
    """The same examples by TRL's SFTTrainer, loss on answers: `packed` as its documentation has it, or an example a row."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Turns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            done(counts.pop(0))

    tokenizer, encoded, network = prepared(source)
    order = np.random.default_rng(0).permutation(len(encoded.lengths))
    rows = [(slice(*encoded.starts[n : n + 2])) for n in order]
    examples = Dataset.from_list([{"input_ids": encoded.ids[r], "completion_mask": encoded.learn[r].astype(int)} for r in rows])
    per_step = STEP_TOKENS // CONTEXT[source] if packed else round(STEP_TOKENS / encoded.lengths.mean())
    counts: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=network, train_dataset=examples, processing_class=tokenizer, callbacks=[Turns()],
            args=SFTConfig(
                output_dir=folder, per_device_train_batch_size=per_step, max_length=CONTEXT[source], packing=packed, max_steps=STEPS,
                completion_only_loss=True, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=10**6,
                learning_rate=1e-4, weight_decay=0.1, adam_beta2=0.95, lr_scheduler_type="constant", bf16=False,
                gradient_checkpointing=False,
            ),
        )  # fmt: skip
        collator = trainer.data_collator

        def counting(features: list[Any]) -> Any:
            counts.append(sum(len(feature["input_ids"]) for feature in features))
            return collator(features)

        trainer.data_collator = counting
        trainer.train()


def useful_tokens_per_s() -> list[Row]:
    """Tokens that are no padding per second of whole training steps on one core, about 2,048 tokens a step, the same model and examples.

    TRL's packed mode lets attention cross examples here; ours keeps them apart.
    """
    found = []
    for source in CONTEXT:
        rates, ratios = race([Racer(HERE, kind, source) for kind in ("ours", "trl-unpacked", "trl-packed")], STEPS - 3)
        for n, (peer, goal) in enumerate((("unpacked", 2), ("packed", 1.1)), 1):
            name = f"sft.useful_tokens_per_s.{source}.{peer}"
            met = ratios[n] >= goal
            found.append(row(name, rates[0], "tokens/s", f"at least {goal}x", met, rates[n], f"TRL SFTTrainer, {peer}", ratios[n]))
    return found


def padding() -> list[Row]:
    """Per cent of padding in rows of 4,096 tokens for each packing, and of examples that are too long."""
    found = []
    for source, examples in (("generated", generated()), ("gsm8k", gsm8k())):
        tokenizer = train([example.text for example in examples], 1024)
        figures = packing.figures(packing.encode(examples, tokenizer).lengths, PAPER_CONTEXT, "drop", 0)
        for name, values in figures.items():
            percent, long = 100 * values["padding_frac"], 100 * values["too_long_frac"]
            found.append(row(f"sft.packing.{source}.{name}", percent, "% padding", f"{long:.2f} % of examples too long", True))
    return found


BENCHMARKS: dict[str, Benchmark] = {"sft.useful_tokens_per_s": useful_tokens_per_s, "sft.packing": padding}

if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if sys.argv[1] == "ours":
        steps = our_steps(sys.argv[2])
        while True:
            wait()
            done(next(steps))
    trl_steps(sys.argv[2], packed=sys.argv[1] == "trl-packed")
