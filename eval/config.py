"""Settings of the stages benchmarks, evaluate and report."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mathpipe.pipeline.config import Runtime, nearest

BENCHMARKS_VARIABLE = "MATHPIPE_BENCHMARKS"
"""Environment variable with the folder of local benchmark files."""
TASKS = (
    "mmlu", "bbh", "gsm8k", "gsm8k-pot", "gsm8k-tir", "math", "math-pot", "math-tir", "ocw", "sat", "mmlu_stem", "cmath", "cmath-tir",
    "mgsm_zh", "mgsm_zh-tir", "held_out",
)  # fmt: skip
"""Names of eval/tasks.py, in the order of the report."""
ENGINES = ("auto", "own", "vllm", "transformers", "lm-eval", "lm-eval-own")
REFERENCE_TASKS = ("mmlu", "bbh", "gsm8k", "math")
"""Tasks that lm-evaluation-harness defines as they are asked here."""
MODEL_STAGES = ("tokenizer", "tokens", "pretrain", "sft", "grpo", "evaluate")
"""What a report on the whole chain reads beyond one on the corpus."""


def at_least(minimum: int, **values: int) -> None:
    """Raise ValueError for the first value below `minimum`."""
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, found {value}")


@dataclass(frozen=True)
class BenchmarksConfig:
    """Where the benchmarks come from."""

    SECTION: ClassVar[str] = "benchmarks"
    VERSION: ClassVar[int] = 3

    source: str = "auto"
    """`local` (MATHPIPE_BENCHMARKS), `hub`, `stand-in`, or `auto`: the first of these that can be had."""
    hub_timeout_s: float = 3.0
    """Seconds that `auto` waits for the hub before it takes stand-ins."""
    stand_in_per_task: int = 40
    """Questions per task and subject of the stand-ins."""
    seed: int = 0
    """Seed of the stand-ins."""
    runtime: Runtime = field(default_factory=Runtime)
    """Hardware; outside the hash."""

    def __post_init__(self) -> None:
        if self.source not in ("auto", "local", "hub", "stand-in"):
            raise ValueError(f"source must be auto, local, hub or stand-in, found {self.source!r}")
        at_least(1, stand_in_per_task=self.stand_in_per_task)

    def local_folder(self) -> Path | None:
        """The folder of local files, when this source may use it and the variable is set."""
        folder = os.environ.get(BENCHMARKS_VARIABLE)
        return Path(folder) if folder and self.source in ("auto", "local") else None

    def fingerprint(self) -> Any:
        """Names, sizes and times of the local files: the artifact is another one when they change."""
        folder = self.local_folder()
        if folder is None:
            return None
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {"folder": str(folder), "files": [[str(f.relative_to(folder)), f.stat().st_size, f.stat().st_mtime_ns] for f in files]}


@dataclass(frozen=True)
class EvaluateConfig:
    """What is asked of each model."""

    SECTION: ClassVar[str] = "evaluate"
    VERSION: ClassVar[int] = 2

    tasks: tuple[str, ...] = TASKS
    """Tasks to run, of eval/tasks.py: a suite, or a suite with programs (`-pot`) or with text and programs by turns (`-tir`)."""
    shots: Mapping[str, int] = field(default_factory=dict)
    """Task → worked examples before a question, where not as many as there are."""
    limit: int = 0
    """Items of a task, drawn evenly from its groups with `seed`; 0: all."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Task → its own limit."""
    max_new_tokens: int = 1024
    """Longest completion, where the task has no lower limit; at most half of the context."""
    num_samples: int = 0
    """Samples of a problem for maj@K and pass@K, K up to this, beside the greedy answer; 0: none."""
    sampled: tuple[str, ...] = ("gsm8k", "math")
    """Tasks of `tasks` that are sampled."""
    temperature: float = 0.7
    """Of the samples (paper: 0.7)."""
    top_p: float = 1.0
    """Of the samples."""
    engine: str = "auto"
    """Who answers: `own`, `vllm`, `transformers`, or `auto`: our own on a CPU, on a GPU vLLM where it is installed. `lm-eval` is the
    reference: lm-evaluation-harness asks, its transformers back end answers, every model is asked as a base model (`lm-eval-own`: our
    own engine answers it)."""
    max_context: int = 4096
    """Tokens of prompt and completion, at most what the model has positions for; longer prompts have fewer worked examples."""
    batch_tokens: int = 16384
    """Tokens of one batch without vLLM."""
    seed: int = 0
    """Seed of the sub-samples and the samples."""
    runtime: Runtime = field(default_factory=Runtime)
    """Hardware; outside the hash."""

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks must name some tasks, each once, found {list(self.tasks)}")
        for name, named in {"tasks": self.tasks, "shots": self.shots, "limits": self.limits, "sampled": self.sampled}.items():
            unknown = next((task for task in named if task not in TASKS), None)
            if unknown is not None:
                raise ValueError(f"{name} names {unknown!r}, which is no task{nearest(unknown, TASKS)} (there are: {', '.join(TASKS)})")
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, found {self.engine!r}")
        if self.engine.startswith("lm-eval") and (self.num_samples or set(self.tasks) - set(REFERENCE_TASKS)):
            known = ", ".join(REFERENCE_TASKS)
            raise ValueError(f"engine {self.engine!r} gives greedy answers to {known} alone; set num_samples = 0 and name these in tasks")
        if {"mmlu"} & set(self.sampled) and self.num_samples:
            raise ValueError("sampled names 'mmlu', whose answers are no completions")
        if not (self.temperature > 0 and 0 < self.top_p <= 1):
            raise ValueError(f"need temperature > 0 and 0 < top_p <= 1, found {self.temperature} and {self.top_p}")
        at_least(0, limit=self.limit, num_samples=self.num_samples, **{f"limits.{key}": value for key, value in self.limits.items()},
                 **{f"shots.{key}": value for key, value in self.shots.items()})  # fmt: skip
        at_least(1, max_new_tokens=self.max_new_tokens, batch_tokens=self.batch_tokens)
        at_least(16, max_context=self.max_context)  # half of it is for the prompt

    def limit_of(self, task: str) -> int:
        """Items of a task at most; 0: all."""
        return self.limits.get(task, self.limit)

    def describe(self) -> str:
        """For `mathpipe plan`."""
        sizes = (f"{task} ({self.limit_of(task) or 'all'})" for task in self.tasks)
        samples = f"; {self.num_samples} samples of {', '.join(self.sampled)}" if self.num_samples else ""
        return f"every model: {', '.join(sizes)}{samples}"

    def require(self, runtime: Runtime) -> None:
        """Refuse a machine without the GPU asked for."""
        dataclasses.replace(runtime, num_processes=1).require_devices()


@dataclass(frozen=True)
class ReportConfig:
    """What the report shows."""

    SECTION: ClassVar[str] = "report"
    VERSION: ClassVar[int] = 1

    title: str = "mathpipe: DeepSeekMath, reproduced"
    """Heading of the page."""
    num_samples: int = 6
    """Sample pages, completions and items of each kind."""
    seed: int = 0
    """Seed of the samples."""

    def __post_init__(self) -> None:
        at_least(0, num_samples=self.num_samples)


@dataclass(frozen=True)
class EvaluateInputs:
    """Benchmarks and the stages that made models."""

    benchmarks: Path
    pretrain: Path
    sft: Path
    grpo: Path


@dataclass(frozen=True)
class ReportInputs:
    """The stages of the corpus and, all or none, those of the models after it; the volume sweep and ablations where there were."""

    benchmarks: Path
    crawl: Path
    pages: Path
    round1: Path
    round2: Path
    round3: Path
    round4: Path
    corpus: Path
    tokenizer: Path | None = None
    tokens: Path | None = None
    contamination: Path | None = None
    pretrain: Path | None = None
    sft: Path | None = None
    grpo: Path | None = None
    evaluate: Path | None = None
    volumes: Path | None = None
    code_first: Path | None = None
    mixing: Path | None = None
    arxiv: Path | None = None
    figure5: Path | None = None
    supervision: Path | None = None
    groups: Path | None = None

    def __post_init__(self) -> None:
        missing = [name for name in MODEL_STAGES if getattr(self, name) is None]
        if missing and len(missing) < len(MODEL_STAGES):
            raise ValueError(f"missing input: give --in {missing[0]}=DIR, or none of {', '.join(MODEL_STAGES)} for a report on the corpus")
