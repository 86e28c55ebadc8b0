"""Settings of the stages benchmarks, evaluate and report."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mathpipe.pipeline.config import Runtime

BENCHMARKS_VARIABLE = "MATHPIPE_BENCHMARKS"
"""Environment variable with the folder of local benchmark files."""
SUITES = ("mmlu", "bbh", "held_out")
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
    """What is asked of each model. A limit of 0 means every item."""

    SECTION: ClassVar[str] = "evaluate"
    VERSION: ClassVar[int] = 1

    suites: tuple[str, ...] = SUITES
    """Suites to run, of mmlu, bbh and held_out."""
    mmlu_shots: int = 5
    """Examples of the dev split before a question."""
    mmlu_limit_per_subject: int = 0
    """Test questions per subject, drawn with `seed`."""
    bbh_shots: int = 3
    """Worked examples of the published prompt before a question."""
    bbh_limit_per_task: int = 0
    """Questions per task, drawn with `seed`."""
    bbh_max_new_tokens: int = 512
    """Longest BBH completion."""
    held_out_limit: int = 0
    """Held-out problems, the first ones of the GRPO artifact's file."""
    held_out_max_new_tokens: int = 256
    """Longest completion of a held-out problem."""
    engine: str = "auto"
    """Who generates: `vllm`, `transformers`, or `auto`: vLLM where it is installed."""
    max_context: int = 4096
    """Tokens of prompt and completion, at most what the model has positions for; longer prompts drop shots from the front."""
    batch_tokens: int = 16384
    """Tokens of one batch without vLLM."""
    seed: int = 0
    """Seed of the sub-samples."""
    runtime: Runtime = field(default_factory=Runtime)
    """Hardware; outside the hash."""

    def __post_init__(self) -> None:
        unknown = set(self.suites) - set(SUITES)
        if unknown or not self.suites or len(set(self.suites)) != len(self.suites):
            raise ValueError(f"suites must name some of {', '.join(SUITES)}, each once, found {list(self.suites)}")
        if self.engine not in ("auto", "vllm", "transformers"):
            raise ValueError(f"engine must be auto, vllm or transformers, found {self.engine!r}")
        at_least(0, mmlu_shots=self.mmlu_shots, mmlu_limit_per_subject=self.mmlu_limit_per_subject, bbh_shots=self.bbh_shots,
                 bbh_limit_per_task=self.bbh_limit_per_task, held_out_limit=self.held_out_limit)  # fmt: skip
        at_least(1, bbh_max_new_tokens=self.bbh_max_new_tokens, held_out_max_new_tokens=self.held_out_max_new_tokens,
                 batch_tokens=self.batch_tokens)  # fmt: skip
        longest = max(self.bbh_max_new_tokens, self.held_out_max_new_tokens)
        if self.max_context <= longest:
            raise ValueError(f"max_context ({self.max_context}) leaves no room for a prompt beside {longest} new tokens")
        if self.mmlu_shots > 5 or self.bbh_shots > 3:
            raise ValueError(f"mmlu has 5 examples and bbh 3, found mmlu_shots={self.mmlu_shots}, bbh_shots={self.bbh_shots}")

    def describe(self) -> str:
        """For `mathpipe plan`."""
        mmlu, bbh, held_out = (limit or "all" for limit in (self.mmlu_limit_per_subject, self.bbh_limit_per_task, self.held_out_limit))
        sizes = {
            "mmlu": f"MMLU {self.mmlu_shots}-shot ({mmlu} per subject)",
            "bbh": f"BBH {self.bbh_shots}-shot ({bbh} per task)",
            "held_out": f"held-out problems ({held_out})",
        }
        return "3 models: " + ", ".join(sizes[suite] for suite in self.suites)

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
    """Benchmarks and the three models."""

    benchmarks: Path
    pretrain: Path
    sft: Path
    grpo: Path

    def models(self) -> dict[str, Path]:
        """Model name → folder."""
        return {"base": self.pretrain / "model", "sft": self.sft / "model", "grpo": self.grpo / "model"}


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
