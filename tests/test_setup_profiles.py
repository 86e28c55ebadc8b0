"""The profiles are complete, they build, and every value of `paper` says where it comes from."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mathpipe.pipeline import cli, config, stages
from mathpipe.pipeline.config import Runtime, build
from mathpipe.pipeline.plan import make_plan
from mathpipe.pretrain.config import PretrainConfig

CONFIGS = Path(__file__).parent.parent / "pipeline" / "configs"
SOURCE = re.compile(r"  # (section \d(\.\d)*|eq\. \d|algorithm 1|not stated; we chose)\b")


def sections() -> dict[str, Any]:
    return {stage.config_class().SECTION: stage.config_class() for stage in stages.STAGES.values()}


def tables(profile: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads((CONFIGS / f"{profile}.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("profile", ["small", "paper"])
def test_profile_writes_every_field_of_every_section(profile: str) -> None:
    wanted = {"runtime": {f.name for f in dataclasses.fields(Runtime)}}
    wanted |= {name: {f.name for f in dataclasses.fields(cls)} - {"runtime"} for name, cls in sections().items()}
    found = {name: set(table) for name, table in tables(profile).items()}
    assert found == wanted


@pytest.mark.parametrize("profile", ["tiny", "manuals", "small", "paper"])
def test_profile_builds(profile: str) -> None:
    found = tables(profile)
    runtime = build(Runtime, found.pop("runtime"), profile)
    known = sections()
    assert found.keys() <= known.keys()
    for name, cls in known.items():
        build(cls, found.get(name, {}), f"{profile}: [{name}]", runtime)


def test_every_value_of_paper_cites_its_source() -> None:
    lines = (CONFIGS / "paper.toml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if line and not line.startswith(("#", "["))]
    items = [item for table in tables("paper").values() for item in table.values()]
    assert len(values) == sum(len(item) if isinstance(item, dict) else 1 for item in items), "one value a line"
    assert [line for line in values if not SOURCE.search(line)] == []


def test_paper_has_the_papers_numbers() -> None:
    """Spot checks against the text of section 2 and 4, typed from the paper and not from the profile."""
    paper = tables("paper")
    assert {key: paper["classifier"][key] for key in ("dim", "lr", "word_ngrams", "min_count", "epoch", "num_seeds")} == {
        "dim": 256, "lr": 0.1, "word_ngrams": 3, "min_count": 3, "epoch": 3, "num_seeds": 500_000,
    }  # fmt: skip
    assert [paper["pretrain"][key] for key in ("peak_lr", "total_tokens", "warmup_steps", "context")] == [4.2e-4, 500 * 10**9, 2000, 4096]
    assert [paper["sft"][key] for key in ("lr", "num_steps", "batch_sequences")] == [5e-5, 500, 256]
    grpo = paper["grpo"]
    assert [grpo[key] for key in ("lr", "kl_coef", "group_size", "max_new_tokens")] == [1e-6, 0.04, 64, 1024]
    assert grpo["questions_per_step"] * grpo["group_size"] == 1024


def test_the_examples_of_the_help_are_settings_that_exist() -> None:
    given = re.findall(r"--set (\S+)", cli.EXAMPLES)
    assert given
    make_plan(Path("nowhere"), "tiny", overrides=given)


def refusals(profile: str) -> dict[str, str]:
    """Stage → why it refuses this machine."""
    found = {}
    plan = make_plan(Path("nowhere"), profile)
    for step in plan.steps.values():
        if hasattr(step.config, "require"):
            try:
                step.config.require(plan.runtime)
            except ValueError as error:
                found[step.name] = str(error)
    return found


def test_tiny_refuses_nothing_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "num_gpus", lambda: 0)
    assert refusals("tiny") == {}


def test_small_wants_one_gpu_and_paper_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "num_gpus", lambda: 1)
    assert not {"pretrain", "sft", "grpo", "evaluate"} & refusals("small").keys()
    assert "needs 8 GPUs" in refusals("paper")["grpo"] and "found 1" in refusals("paper")["grpo"]
    monkeypatch.setattr(config, "num_gpus", lambda: 0)
    assert {"pretrain", "sft", "grpo", "evaluate"} <= refusals("small").keys()


def test_missing_data_is_refused_with_its_place() -> None:
    found = refusals("small")
    assert "data/openwebmath.parquet" in found["round1.train"]


def test_seven_billion_parameters_do_not_fit_a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bytes a parameter: weights, gradient and two moments in fp32; the size is read from the start model's name."""
    monkeypatch.setattr("mathpipe.pretrain.config.memory_bytes", lambda: 24 * 10**9)
    on_cpu = Runtime(device="cpu")
    with pytest.raises(ValueError, match="needs 112 GB of memory .* found 24 GB"):
        PretrainConfig(start="deepseek-ai/deepseek-coder-7b-base-v1.5").require(on_cpu)
    PretrainConfig(start="deepseek-ai/deepseek-coder-1.3b-base").require(on_cpu)  # 20.8 GB


@pytest.mark.parametrize(("stage", "words"), [
    ("pretrain", "47,683 steps × 10,485,760 tokens = 499,992,494,080 tokens"),
    ("sft", "500 steps of 256 × 4,096 = 1,048,576 tokens"),
    ("grpo", "9,000 steps × 16 questions × 64 samples = 9,216,000 samples"),
])  # fmt: skip
def test_plan_of_paper_states_sizes(stage: str, words: str) -> None:
    assert words in make_plan(Path("nowhere"), "paper").steps[stage].config.describe()
