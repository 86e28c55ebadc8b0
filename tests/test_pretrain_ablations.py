"""The paper's pre-training comparisons: what each arm trains on, how arms are compared, what the command plans."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from corpus_artifacts import finish, folder, rows

from mathpipe.eval import report_ablations
from mathpipe.eval.report_source import Source
from mathpipe.pipeline import artifact, stages, tables
from mathpipe.pipeline.config import ConfigError
from mathpipe.pipeline.plan import make_plan
from mathpipe.pretrain import compare, model, tokens
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain.ablation_config import ARMS, AblateConfig, CompareInputs, Phase, phases_of
from mathpipe.pretrain.config import PretrainConfig, VolumesConfig

FRAC = 0.3
COMPARISONS = {name: found for name, found in stages.COMPARISONS.items() if found.family == "arm"}
SEEDS = range(3)
PAPER = 400 / 550


def test_arms_are_the_papers() -> None:
    """400B tokens of code, then 150B of mathematics; mathematics alone is 150B; the mixture is one stage of both (section 5.1)."""
    assert phases_of("code-math", PAPER) == (1.0, (Phase(PAPER, {"code": 1.0}), Phase(1 - PAPER, {"math": 1.0})))
    share, phases = phases_of("math", PAPER)
    assert share * 550 == pytest.approx(150) and phases == (Phase(1.0, {"math": 1.0}),)
    share, phases = phases_of("general", PAPER)
    assert share * 550 == pytest.approx(400) and phases == (Phase(1.0, {"general": 1.0}),)
    share, (mixed,) = phases_of("mixed", PAPER)
    assert share == 1 and mixed.mix["code"] / mixed.mix["math"] == pytest.approx(400 / 150)


def test_an_arm_settles_into_a_training_run_that_differs_in_data_alone() -> None:
    sizes = {"total_tokens": 550_000, "batch_tokens": 2_000, "context": 200, "micro_batch_tokens": 200}
    runs = {arm: AblateConfig(arm=arm, **sizes).settled() for arm in ARMS}
    assert {arm: run.num_steps for arm, run in runs.items()} == {
        "general": 200, "general-math": 275, "general-arxiv": 275, "code-math": 275, "math": 75, "mixed": 275,
    }  # fmt: skip
    for run in runs.values():
        assert type(run) is PretrainConfig and run.peak_lr == AblateConfig().peak_lr and run.seed == 0
    with pytest.raises(ValueError, match="arm is empty; give --set ablate.arm=code-math"):
        AblateConfig().settled()
    with pytest.raises(ValueError, match="arm must be one of general, .*found 'maths'"):
        AblateConfig(arm="maths")
    with pytest.raises(ValueError, match="first_frac"):
        AblateConfig(first_frac=1.0)


def test_the_command_plans_three_arms_with_three_seeds_and_shares_them(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "tiny")
    for name, found in COMPARISONS.items():
        pending = {step.name for step in plan.pending([f"ablate.{name}"])}
        assert {step for step in pending if step.startswith("arm.")} == {f"arm.{arm}.{seed}" for arm in found.arms for seed in SEEDS}
        assert set(found.arms) <= set(ARMS)
    made = [plan.steps[f"arm.{arm}.{seed}"] for arm in ARMS for seed in SEEDS]
    assert len({step.hash for step in made}) == len(made), "no two models are the same"
    assert [(step.config.arm, step.config.seed) for step in made] == [(arm, seed) for arm in ARMS for seed in SEEDS]
    assert not any(name.startswith(("arm.", "ablate.")) for name in stages.default())


@pytest.mark.parametrize(("override", "message"), [
    ("ablate.seed=9", r"\[ablate\] seed = 9: each stage has its own \(arm.general-math.0: 0\)"),
    ("ablate.arm=math", r"\[ablate\] arm = 'math': each stage has its own"),
    ("ablate.phases=[{frac=1.0, mix={code=1}}]", "phases follow from the arm"),
    ("pretrain.phases=[{frac=1.0, mix={maht=1}}]", r"pretrain.phases names 'maht', .*did you mean 'math'\? \(there are: math, arxiv, code"),
    ("sweep.phases=[{frac=1.0, mix={code=1}}]", r"sweep.phases names 'code', .* \(there are: math\)"),
])  # fmt: skip
def test_what_would_be_ignored_or_not_be_found_is_refused_before_anything_runs(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(tmp_path, "tiny", overrides=[override])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> CompareInputs:
    """Nine untrained models: arms differ in the spread of their weights, seeds in the draw."""
    base = tmp_path_factory.mktemp("ablations")
    texts = [f"Page {i}: the square of {i} is {i * i}, and its cube is {i**3}." for i in range(40)]
    problem = "Ann has three apples and buys four more at the shop; how many apples has she?"
    problems = {"url": ["gsm8k/train/0", "gsm8k/test/0"], "text": [problem] * 2, "benchmark": ["gsm8k"] * 2, "split": ["train", "test"]}
    artifact.write_parquet(folder(base, "benchmarks") / "data" / "b.parquet", pa.table(problems))
    for name, file in (("corpus", "00000"), ("sources", "code-00000"), ("sources", "general-00000")):
        table = {"url": [f"{file}/{i}" for i in range(40)], "text": [f"{file} {text}" for text in texts]}
        artifact.write_parquet(folder(base, name) / "data" / f"{file}.parquet", pa.table(table))
    facts = {"benchmarks": {}, "corpus": {}, "sources": {}, "tokens": {"held_out_frac": FRAC}}
    paths = {name: finish(folder(base, name), made) for name, made in facts.items()}
    runs = {}
    vocabulary = bpe.train(texts, 300)
    for arm, spread in (("math", 0.3), ("code-math", 0.4), ("mixed", 0.5)):
        for seed in SEEDS:
            config = PretrainConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, seed=seed, initializer_range=spread)
            out = folder(base, f"{arm}.{seed}")
            model.save(model.build(config, len(vocabulary), vocabulary.eos_token_id, vocabulary.pad_token_id), vocabulary, out)
            runs[f"{arm}.{seed}"] = finish(out, {"arm": arm, "num_tokens": 1000, "seed": seed})
    return CompareInputs(**paths, runs=runs)


def test_arms_are_compared_on_texts_that_none_saw_and_a_killed_comparison_continues(trained: CompareInputs, tmp_path: Path) -> None:
    facts = compare.run(VolumesConfig(), trained, tmp_path)
    assert facts["arms"] == ["math", "code-math", "mixed"] and facts["num_seeds"] == 3 and facts["seeds"] == [0, 1, 2]
    kinds = ["problems", "math", "code", "general"]
    assert list(facts["texts"]) == kinds and facts["texts"]["problems"] == 1
    urls = {row["url"] for row in rows(tmp_path, "items")}
    assert urls == {"gsm8k/train/0"} | {
        f"{file}/{i}#0" for file in ("00000", "code-00000", "general-00000") for i in range(40) if tokens.is_held_out(f"{file}/{i}", FRAC)
    }
    first, second, third = artifact.read_metrics(tmp_path)
    assert [first[f"{kind} difference"] for kind in kinds] == [0.0] * 4
    for kind in kinds:
        expected = np.array(second[f"{kind} values"]) - np.array(first[f"{kind} values"])
        assert second[f"{kind} difference"] == pytest.approx(expected.mean())
        assert second[f"{kind} difference stderr"] == pytest.approx(expected.std(ddof=1) / math.sqrt(3))
        assert third[f"{kind} bits_per_byte"] == pytest.approx(np.mean(third[f"{kind} values"]))
    before = artifact.read_metrics(tmp_path)
    (tmp_path / "items" / "mixed-1.parquet").unlink()
    assert compare.run(VolumesConfig(), trained, tmp_path) == facts and artifact.read_metrics(tmp_path) == before


def test_table_row_by_hand() -> None:
    """Values 1, 2, 3 against 1, 1, 1: mean 2, difference 1, standard error √(1/3)."""
    row = compare.table_row(["code"], np.array([[1.0], [2.0], [3.0]]), np.ones((3, 1)))
    assert (row["code bits_per_byte"], row["code difference"]) == (2.0, 1.0)
    assert row["code stderr"] == row["code difference stderr"] == pytest.approx(math.sqrt(1 / 3))


def test_the_report_sets_ours_beside_the_papers_table(trained: CompareInputs, tmp_path: Path) -> None:
    out = folder(tmp_path, "mixing")
    finish(out, compare.run(VolumesConfig(), trained, out))
    html = report_ablations.ablations(Source({"mixing": out}))
    assert "mathpipe ablate code-first" in html and "mathpipe ablate mixing" not in html
    assert "29.3" in html and "code 400B and math 150B in one stage" in html and "<svg" in html
    line = artifact.read_metrics(out)[2]
    assert f"{line['code bits_per_byte']:.4f} ± {line['code stderr']:.4f}" in html


def test_the_terminal_gets_the_table_of_a_comparison(trained: CompareInputs, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "tiny")
    out = plan.steps["ablate.mixing"].out
    out.mkdir(parents=True)
    finish(out, compare.run(VolumesConfig(), trained, out))
    shown = tables.closing(plan, ["ablate.mixing"])
    assert [line.split()[0] for line in shown.splitlines()] == ["arm", "math", "code-math", "mixed", "bits"]
