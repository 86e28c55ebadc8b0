"""Config of the stages tokenizer, tokens and pretrain (torch-free)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mathpipe.pipeline.config import Runtime, memory_bytes

SCHEDULES = ("paper", "note", "constant")
COUNTS = (
    "hidden_size", "intermediate_size", "num_layers", "num_heads", "max_position", "context", "batch_tokens", "micro_batch_tokens",
    "total_tokens", "eval_every", "checkpoint_every", "keep_checkpoints",
)  # fmt: skip
"""Fields of PretrainConfig that are at least 1."""
MATH = "math"
"""Name of the corpus among the sources of tokens."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Byte-level BPE trained on the corpus."""

    SECTION: ClassVar[str] = "tokenizer"
    VERSION: ClassVar[int] = 1
    vocab_size: int = 1024
    """Tokens, the two special ones and the 256 bytes included."""
    max_chars: int = 20_000_000
    """Train on at most this many characters of the corpus, in its order."""
    pretrained: str = ""
    """Keep the tokenizer of this transformers model (path or hub name) instead of training one."""

    def __post_init__(self) -> None:
        if self.vocab_size < 300:
            raise ValueError(f"vocab_size must be at least 300 (256 bytes and two special tokens), found {self.vocab_size}")

    def fingerprint(self) -> dict[str, list[int]] | None:
        """Of the model whose tokenizer is kept, where it is a folder."""
        return model_files(self.pretrained)

    def describe(self) -> str:
        """For `mathpipe plan`."""
        return f"that of {self.pretrained}" if self.pretrained else f"vocabulary {self.vocab_size:,}"


@dataclass(frozen=True)
class TokensConfig:
    """Corpus and other sources → memory-mapped token shards."""

    SECTION: ClassVar[str] = "tokens"
    VERSION: ClassVar[int] = 2
    held_out_frac: float = 0.02
    """Share of documents kept for the held-out loss, chosen by a hash of the URL."""
    shard_tokens: int = 100_000_000
    """A shard is made of consecutive files of a source, as many as hold about this many tokens (at 4 bytes a token)."""
    runtime: Runtime = field(default_factory=Runtime)
    """Hardware."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out_frac < 1:
            raise ValueError(f"held_out_frac must lie between 0 and 1, found {self.held_out_frac}")
        if self.shard_tokens < 1:
            raise ValueError(f"shard_tokens must be at least 1, found {self.shard_tokens}")


@dataclass(frozen=True)
class Phase:
    """A part of a training run with one mixture; a curriculum is a list of phases, a mixture is one."""

    frac: float
    """Share of the run's tokens."""
    mix: dict[str, float]
    """Source of tokens → weight; weights are relative to their sum."""

    def __post_init__(self) -> None:
        if not 0 < self.frac <= 1:
            raise ValueError(f"frac must lie above 0 and not above 1, found {self.frac}")
        weights = self.mix.values()
        if any(not math.isfinite(weight) or weight < 0 for weight in weights) or sum(weights) <= 0:
            raise ValueError(f"mix needs weights that are not negative and one that is positive, found {self.mix}")

    def describe(self) -> str:
        """`56 % math, 44 % code`."""
        total = sum(self.mix.values())
        return ", ".join(f"{100 * weight / total:.3g} % {source}" for source, weight in self.mix.items() if weight)


@dataclass(frozen=True)
class PretrainConfig:
    """Language model on the corpus (section 2.2 and 2.3)."""

    SECTION: ClassVar[str] = "pretrain"
    VERSION: ClassVar[int] = 2
    start: str = ""
    """Start from this transformers causal LM (path or hub name); empty trains from scratch with the sizes below."""
    hidden_size: int = 128
    """Width of the residual stream."""
    intermediate_size: int = 352
    """Width of the feed-forward layer."""
    num_layers: int = 4
    """Transformer layers."""
    num_heads: int = 4
    """Attention heads; no grouping of keys and values."""
    initializer_range: float = 0.02
    """Standard deviation of the initial matrices; narrow models learn several times faster with about 1/sqrt(hidden_size)."""
    max_position: int = 4096
    """Longest context the model accepts (rotary positions)."""
    context: int = 256
    """Tokens of a training window."""
    batch_tokens: int = 8192
    """Tokens of an optimizer step, over all processes."""
    micro_batch_tokens: int = 4096
    """Tokens of one forward pass of one process, at most; a process's share of `batch_tokens` must divide into such parts."""
    total_tokens: int = 1_000_000
    """Tokens of the whole run; a source that is smaller than its share is repeated."""
    phases: tuple[Phase, ...] = (Phase(1.0, {MATH: 1.0}),)
    """What is trained on, one mixture of sources after another; their shares of the tokens sum to 1."""
    isolate: bool = False
    """Whether attention stays inside a document; off, it crosses the documents of a window, as was customary."""
    peak_lr: float = 3e-3
    """Learning rate after the warm-up."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    schedule: str = "paper"
    """`paper`: 31.6 % of the peak after 80 % of the steps, 10 % after 90 %; `note`: 10 % after 90 %; `constant`."""
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
    """torch.compile the decoder layers, for GPUs; on CPUs the kernels of fast_cpu.py are faster without."""
    on_bad_loss: str = "stop"
    """On a loss or gradient that is not finite, and on a spike: `stop`, or `skip` the step (five in a row stop)."""
    spike_factor: float = 0.0
    """A loss above this many times the median of the last 50 is a spike; 0: none is."""
    eval_every: int = 20
    """Steps between two held-out losses."""
    checkpoint_every: int = 50
    """Steps between two resumable checkpoints."""
    keep_checkpoints: int = 1
    """How many of them are kept."""
    seed: int = 0
    """Initial weights and order of the windows."""
    runtime: Runtime = field(default_factory=Runtime)
    """Hardware."""

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("peak_lr", "warmup_steps", "weight_decay", "max_grad_norm", "spike_factor"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}")
        if self.context > self.max_position:
            raise ValueError(f"context {self.context} exceeds max_position {self.max_position}")
        if self.batch_tokens % self.context or self.batch_tokens < self.context:
            raise ValueError(f"batch_tokens {self.batch_tokens} must be a multiple of context {self.context}")
        if self.micro_batch_tokens % self.context or self.micro_batch_tokens < self.context:
            raise ValueError(f"micro_batch_tokens {self.micro_batch_tokens} must be a multiple of context {self.context}")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage must be 0, 1, 2 or 3, found {self.zero_stage}")
        if self.on_bad_loss not in ("stop", "skip"):
            raise ValueError(f"on_bad_loss must be stop or skip, found {self.on_bad_loss!r}")
        if self.spike_factor and self.spike_factor <= 1:
            raise ValueError(f"spike_factor must be 0 (off) or above 1, found {self.spike_factor}")
        if abs(sum(phase.frac for phase in self.phases) - 1) > 1e-9:
            raise ValueError(f"the frac of all phases must sum to 1, found {[phase.frac for phase in self.phases]}")

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run, at least one."""
        return max(1, self.total_tokens // self.batch_tokens)

    @property
    def num_parameters(self) -> int:
        """Parameters of a model trained from scratch, without the embeddings (which depend on the tokenizer)."""
        return self.num_layers * (4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size)

    def start_parameters(self) -> int | None:
        """Parameters of the start model as its name gives them (`…-1.3b-base`), or None."""
        size = re.search(r"(\d+(?:\.\d+)?)b\b", self.start.lower())
        return int(float(size[1]) * 1e9) if size else None

    def describe(self) -> str:
        """For `mathpipe plan`."""
        model = f"from {self.start}" if self.start else f"{self.num_parameters / 1e6:,.2f}M parameters and embeddings, from scratch"
        tokens = f"{self.num_steps:,} steps × {self.batch_tokens:,} tokens = {self.num_steps * self.batch_tokens:,} tokens"
        shares = [f"{100 * phase.frac:.3g} % of the tokens: " if len(self.phases) > 1 else "" for phase in self.phases]
        phases = ", then ".join(share + phase.describe() for share, phase in zip(shares, self.phases, strict=True))
        return f"{tokens}, context {self.context:,}; {model}; {phases}"

    def fingerprint(self) -> dict[str, list[int]] | None:
        """Of the start model, where it is a folder."""
        return model_files(self.start)

    def require(self, runtime: Runtime) -> None:
        """Refuse a machine without the start model's folder, the GPUs asked for, or, on CPUs, memory for the training state in fp32."""
        if self.start.startswith(("/", "./", "../")) and not Path(self.start).is_dir():
            raise ValueError(f"no model folder at {self.start}; put it there or set {self.SECTION}.start")
        runtime.require_devices()
        needed = 16 * ((self.start_parameters() if self.start else self.num_parameters) or 0)
        if not runtime.uses_gpu() and needed > memory_bytes():
            raise ValueError(f"needs {needed / 1e9:.0f} GB of memory for the model's training state, found {memory_bytes() / 1e9:.0f} GB")


@dataclass(frozen=True)
class SweepConfig(PretrainConfig):
    """The small model that judges the volumes: one a volume, alike but for the corpus (section 2.1)."""

    SECTION: ClassVar[str] = "sweep"


@dataclass(frozen=True)
class VolumesConfig:
    """The held-out texts that the models of the volumes, and those of the ablations, are compared on."""

    SECTION: ClassVar[str] = "volumes"
    VERSION: ClassVar[int] = 1
    benchmarks: tuple[str, ...] = ("gsm8k", "math")
    """Their training problems stand for what the corpus is for."""
    num_texts: int = 2000
    """At most this many texts of each kind, drawn with `seed`; 0: all."""
    max_chars: int = 500
    """Characters of a text that count, from its beginning; they should fit into `sweep.context` and `ablate.context`."""
    batch_tokens: int = 8192
    """Tokens of one forward pass."""
    seed: int = 0
    """Draws the texts."""
    runtime: Runtime = field(default_factory=Runtime)
    """Hardware."""

    def __post_init__(self) -> None:
        for name, minimum in (("num_texts", 0), ("max_chars", 1), ("batch_tokens", 1)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, found {getattr(self, name)}")


def model_files(model: str) -> dict[str, list[int]] | None:
    """Sizes and times of the files in a model's folder, for a fingerprint; None of a hub name: what the hub holds is taken as it is."""
    folder = Path(model)
    if not model or not folder.is_dir():
        return None
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(folder.iterdir()) if file.is_file()}


def check_schedule(name: str) -> None:
    """Raise ValueError unless `name` is a learning-rate schedule."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, found {name!r}")


@dataclass(frozen=True)
class TokenizerInputs:
    corpus: Path


@dataclass(frozen=True)
class TokensInputs:
    """`sources`: other text than the corpus, in files named `<source>-<number>.parquet`."""

    corpus: Path
    tokenizer: Path
    sources: Path | None = None


@dataclass(frozen=True)
class PretrainInputs:
    tokens: Path
    tokenizer: Path


@dataclass(frozen=True)
class VolumesInputs:
    """Volume N: the model trained on it and its pages; `tokens` are those of volume 1."""

    benchmarks: Path
    tokens: Path
    corpus1: Path
    corpus2: Path
    corpus3: Path
    corpus4: Path
    volume1: Path
    volume2: Path
    volume3: Path
    volume4: Path
