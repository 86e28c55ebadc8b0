"""Configs of the stages examples and sft (torch-free)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mathpipe.pipeline.config import Runtime, nearest

READERS = ("metamath", "mathinstruct", "numina", "tora", "gsm8k", "math")
"""Public sets that can be read (readers.py)."""


@dataclass(frozen=True)
class ExampleSource:
    """A public set of examples, as local files or on the hub."""

    reader: str
    """The set: metamath, mathinstruct, numina, tora, gsm8k or math."""
    path: str = ""
    """Local .jsonl, .json or .parquet files, plain or compressed; may be a pattern."""
    dataset: str = ""
    """Instead of `path`: name of the data set on the hub."""
    subsets: tuple[str, ...] = ()
    """Its configurations that are read, one after the other; none: the default one."""
    split: str = "train"
    """Its split."""
    revision: str = ""
    """Its commit or tag; empty: the newest."""
    limit: int = 0
    """At most this many records: the first of files, those drawn from the hub; 0 is all."""

    def __post_init__(self) -> None:
        if self.reader not in READERS:
            raise ValueError(f"reader must be one of {', '.join(READERS)}, found {self.reader!r}{nearest(self.reader, READERS)}")
        if bool(self.path) == bool(self.dataset):
            raise ValueError(f"the {self.reader} source needs either path or dataset, found {self.path!r} and {self.dataset!r}")
        if self.limit < 0:
            raise ValueError(f"limit must be 0 (all) or more, found {self.limit}")

    def files(self) -> list[Path]:
        """Local files, by name."""
        path = Path(self.path)
        return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


@dataclass(frozen=True)
class ExamplesConfig:
    """Examples for SFT in one schema (section 3.1: 776K, unpublished; public sets and a generated family stand in)."""

    SECTION: ClassVar[str] = "examples"
    VERSION: ClassVar[int] = 2
    num_examples: int = 20_000
    """Generated examples in all formats, drawn with replacement; GRPO goes on with the same family of problems."""
    cot_frac: float = 0.8
    """Share of chain-of-thought examples among them; the rest is split between the next two."""
    pot_frac: float = 0.1
    """Share of program-of-thought examples."""
    tir_frac: float = 0.1
    """Share of tool-integrated examples."""
    max_number: int = 12
    """Largest number in a generated question."""
    max_result: int = 100
    """Largest intermediate or final result; all are at least 0."""
    sources: tuple[ExampleSource, ...] = ()
    """Public sets, before the generated examples; of equal examples the first is kept."""
    verify: str = "drop"
    """Run the programs of PoT and TIR examples: `drop` rejects those that fail, `keep` marks them, `off` runs none."""
    timeout_s: float = 5.0
    """CPU seconds of one example's programs."""
    seed: int = 0
    """Generated problems, their formats, and what is drawn from the hub."""
    runtime: Runtime = field(default_factory=Runtime)
    """Hardware."""

    def __post_init__(self) -> None:
        fractions = (self.cot_frac, self.pot_frac, self.tir_frac)
        if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f"cot_frac, pot_frac and tir_frac must be ≥ 0 and sum to 1, found {fractions}")
        if self.max_number < 3:
            raise ValueError(f"max_number must be at least 3, found {self.max_number}")
        if self.max_result < 0:
            raise ValueError(f"max_result must be at least 0, found {self.max_result}")
        if self.num_examples < 0 or not (self.num_examples or self.sources):
            raise ValueError(f"num_examples must be 0 or more, and more without sources, found {self.num_examples}")
        if self.verify not in ("drop", "keep", "off"):
            raise ValueError(f"verify must be drop, keep or off, found {self.verify!r}")
        if self.timeout_s < 1:
            raise ValueError(f"timeout_s must be at least 1, found {self.timeout_s}")

    def fingerprint(self) -> dict[str, Any] | None:
        """Names, sizes and times of local files."""
        files = [file for source in self.sources if source.path for file in source.files()]
        return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files} or None

    def describe(self) -> str:
        """For `mathpipe plan`."""
        parts = [f"{s.reader} from {s.dataset or s.path}" + (f" (at most {s.limit:,})" if s.limit else "") for s in self.sources]
        return ", ".join([*parts, f"{self.num_examples:,} generated"])


@dataclass(frozen=True)
class ExamplesInputs:
    """Nothing of the chain is read."""


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on CoT, PoT and tool-integrated examples (section 3)."""

    SECTION: ClassVar[str] = "sft"
    VERSION: ClassVar[int] = 2
    context: int = 512
    """Tokens of a packed sequence (paper: 4K)."""
    packing: str = "shuffle"
    """Examples of a sequence: `shuffle` (paper: concatenated at random), `bfd` (best-fit decreasing: least padding), `none` (one)."""
    too_long: str = "drop"
    """Examples longer than a sequence are left out (`drop`) or lose their end (`cut`)."""
    batch_sequences: int = 16
    """Packed sequences of an optimizer step, over all processes (paper: 256)."""
    micro_batch_sequences: int = 8
    """Packed sequences of one forward pass of one process."""
    num_steps: int = 0
    """Optimizer steps (paper: 500); 0 is one pass over the packed examples."""
    lr: float = 2e-3
    """Peak learning rate (paper: 5e-5, constant)."""
    schedule: str = "constant"
    """`constant`, `paper` or `note` (pretrain/optim.py)."""
    warmup_steps: int = 10
    """Steps of linear warm-up."""
    isolate: bool = True
    """Attention stays within an example of a packed sequence; false lets it cross."""
    beta1: float = 0.9
    """AdamW β₁."""
    beta2: float = 0.95
    """AdamW β₂."""
    weight_decay: float = 0.1
    """On matrices, not on norms."""
    max_grad_norm: float = 1.0
    """Gradient clipping."""
    bf16: bool = False
    """bf16 compute with fp32 master weights."""
    zero_stage: int = 0
    """DeepSpeed ZeRO stage, 0 to 3."""
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again: a third more work, much less memory."""
    compile: bool = False
    """torch.compile the layers."""
    on_bad_loss: str = "stop"
    """On a loss or gradient that is not finite, and on a spike: `stop`, or `skip` the step (five in a row stop)."""
    spike_factor: float = 0.0
    """A loss above this many times the median of the last 50 is a spike; 0: none is."""
    checkpoint_every: int = 50
    """Steps between two resumable checkpoints."""
    keep_checkpoints: int = 1
    """How many of them are kept."""
    seed: int = 0
    """Order of packing."""
    runtime: Runtime = field(default_factory=Runtime)
    """Hardware."""

    def __post_init__(self) -> None:
        for name, allowed in {"packing": ("shuffle", "bfd", "none"), "too_long": ("drop", "cut"), "on_bad_loss": ("stop", "skip")}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, found {getattr(self, name)!r}")
        if self.spike_factor and self.spike_factor <= 1:
            raise ValueError(f"spike_factor must be 0 (off) or above 1, found {self.spike_factor}")
        if self.schedule not in ("paper", "note", "constant"):
            raise ValueError(f"schedule must be paper, note or constant, found {self.schedule!r}")
        for name in ("context", "batch_sequences", "micro_batch_sequences", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("lr", "warmup_steps", "weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage must be 0, 1, 2 or 3, found {self.zero_stage}")
        if self.num_steps < 0:
            raise ValueError(f"num_steps must be 0 (one pass) or more, found {self.num_steps}")

    def describe(self) -> str:
        """For `mathpipe plan`."""
        steps = f"{self.num_steps:,} steps" if self.num_steps else "one pass, steps"
        tokens = f"{self.batch_sequences:,} × {self.context:,} = {self.batch_sequences * self.context:,} tokens"
        return f"{steps} of {tokens}"

    def require(self, runtime: Runtime) -> None:
        """Refuse a machine without the GPUs asked for."""
        runtime.require_devices()


@dataclass(frozen=True)
class SftInputs:
    """`clean`: the examples without those that share text with a benchmark; without it all are used."""

    pretrain: Path
    examples: Path
    clean: Path | None = None
