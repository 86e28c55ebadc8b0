"""Comparisons of reinforcement: what each arm sets, how runs are compared, what the command plans, what the report shows."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from corpus_artifacts import finish, folder

from mathpipe.eval import report_rl
from mathpipe.eval.report_source import Source
from mathpipe.grpo import compare
from mathpipe.grpo.arms_config import ARMS, ArmConfig, CompareConfig, CompareInputs
from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.methods import METHODS
from mathpipe.pipeline import artifact, stages, tables
from mathpipe.pipeline.config import ConfigError
from mathpipe.pipeline.plan import make_plan

COMPARISONS = {name: found for name, found in stages.COMPARISONS.items() if found.family == "rl"}


def test_an_arm_differs_in_what_it_sets_alone() -> None:
    sizes = {"num_steps": 7, "lr": 1e-5, "seed": 2}
    runs = {arm: ArmConfig(arm=arm, **sizes).settled() for arm in ARMS}
    plain = GrpoConfig(**sizes)
    assert runs["plain"] == plain
    for arm, run in runs.items():
        assert type(run) is GrpoConfig
        changed = {f.name for f in fields(GrpoConfig) if getattr(run, f.name) != getattr(plain, f.name)}
        assert changed == {name for name, value in ARMS[arm].items() if value != getattr(plain, name)}


def test_figure_5_rewards_by_rule_or_model_as_the_paper_says() -> None:
    for arm in COMPARISONS["figure5"].arms:
        run = ArmConfig(arm=arm).settled()
        assert ("reward_model" in run.conditional_inputs()) == (METHODS[run.method].reward == "model"), arm
    supervised = [ArmConfig(arm=arm).settled() for arm in COMPARISONS["supervision"].arms]
    assert [(run.supervision, run.wants_reward_model()) for run in supervised] == [
        ("outcome", True), ("process", True), ("outcome", False), ("process", False),
    ]  # fmt: skip
    assert not any(ArmConfig(arm=arm).conditional_inputs() for arm in COMPARISONS["groups"].arms)


def test_what_an_arm_sets_is_refused_in_the_section_and_so_is_no_arm() -> None:
    with pytest.raises(ValueError, match="method follows from the arm"):
        ArmConfig(method="dpo")
    with pytest.raises(ValueError, match="temperatures follows from the arm"):
        ArmConfig(temperatures=(0.7,))
    with pytest.raises(ValueError, match="arm must be one of rft, .*found 'grpo'"):
        ArmConfig(arm="grpo")
    with pytest.raises(ValueError, match="arms.arm is empty; give --set arms.arm=grpo_os"):
        ArmConfig().settled()
    with pytest.raises(ValueError, match="arm 'ladder', which sets .*: group_size 4 is too small for 5 pairs"):
        ArmConfig(arm="ladder", group_size=4).settled()


def test_the_command_plans_every_arm_with_every_seed_once(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "tiny")
    pending = {name: {step.name for step in plan.pending([f"ablate.{name}"])} for name in COMPARISONS}
    for name, found in COMPARISONS.items():
        runs = {f"rl.{arm}.{seed}" for arm in found.arms for seed in range(found.num_seeds)}
        assert {step for step in pending[name] if step.startswith("rl.")} == runs and "sft" in pending[name] and "grpo" not in pending[name]
        assert set(found.arms) <= set(ARMS)
    assert pending["supervision"] & pending["figure5"] >= {f"rl.{arm}.{seed}" for arm in ("grpo_os", "grpo_ps") for seed in range(3)}
    made = [step for name, step in plan.steps.items() if name.startswith("rl.")]
    assert len({step.hash for step in made}) == len(made) == 6 * 3 + 6 * 3 + 3 * 2 + 5
    assert not any(name.startswith(("rl.", "ablate.")) for name in stages.default())
    with pytest.raises(ConfigError, match=r"\[arms\] seed = 9: each stage has its own"):
        make_plan(tmp_path, "tiny", overrides=["arms.seed=9"])


def finished(base: Path, arm: str, seed: int, sampled: float) -> Path:
    """A run of two steps; greedy accuracy rises to `sampled` + 0.1."""
    out = folder(base, f"{arm}.{seed}")
    artifact.append_metrics(out, step=0, sampled_accuracy=0.4, greedy_accuracy=0.5)
    for step, seconds, equal in ((1, 9.0, 0.25), (2, 1.0, 0.5), (3, 2.0, 0.5)):
        extra = {"greedy_accuracy": 0.55} if step == 2 else {}
        artifact.append_metrics(out, step=step, reward=step / 10, step_s=seconds, zero_std_frac=equal, peak_memory_gb=seconds / 4, **extra)
    artifact.append_metrics(out, step=3, sampled_accuracy=sampled, greedy_accuracy=sampled + 0.1)
    held_out = {"n": 100, "sampled": {"before": 0.4, "after": sampled}, "greedy": {"before": 0.5, "after": sampled + 0.1, "p_value": 0.5}}
    return finish(out, {"arm": arm, "held_out": held_out})


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods with two seeds: RFT .40, .50, Online RFT .45, .57 and PPO .30, .30 after training."""
    base = tmp_path_factory.mktemp("arms")
    accuracies = {"rft": (0.4, 0.5), "online_rft": (0.45, 0.57), "ppo": (0.3, 0.3)}
    runs = {f"{arm}.{seed}": finished(base, arm, seed, value) for arm, values in accuracies.items() for seed, value in enumerate(values)}
    out = folder(base, "figure5")
    facts = compare.run(CompareConfig(), CompareInputs(runs), out)
    assert (facts["arms"], facts["by_accuracy"]) == (["rft", "online_rft", "ppo"], ["ppo", "rft", "online_rft"])
    assert (facts["num_seeds"], facts["num_questions"]) == (2, 100)
    return finish(out, facts)


def test_the_table_by_hand(compared: Path) -> None:
    """Online RFT: mean .51, difference .05 and .07: mean .06 with standard error .01."""
    rft, online, ppo = artifact.read_metrics(compared)
    assert (online["sampled"], online["sampled difference"]) == pytest.approx((0.51, 0.06))
    assert online["sampled stderr"] == pytest.approx(0.06) and online["sampled difference stderr"] == pytest.approx(0.01)
    assert rft["sampled difference"] == rft["greedy difference stderr"] == 0
    assert (ppo["greedy"], ppo["greedy_before"]) == pytest.approx((0.4, 0.5))
    assert (ppo["step_s"], ppo["peak_memory_gb"], ppo["zero_std_frac"], ppo["reward"]) == pytest.approx((2.0, 2.25, 0.5, 0.3))
    assert "kl" not in ppo, "what no run measured is left out"
    assert compare.stderr(np.array([1.0])) is None and compare.stderr(np.array([1.0, 3.0])) == pytest.approx(1)


def test_the_front_door_takes_any_number_of_runs(compared: Path, tmp_path: Path) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        config = tmp_path / "compare.toml"
        config.write_text("[compare]\n")
        command = [sys.executable, "-m", "mathpipe.grpo.compare", "--config", str(config), "--out", str(tmp_path / "out"), *words]
        return subprocess.run(command, capture_output=True, text=True)

    base = compared.parent
    done = call("--in", f"runs.ppo.1={base}/ppo.1", "--in", f"runs.rft.1={base}/rft.1")
    assert done.returncode == 0, done.stderr
    manifest = artifact.read_manifest(tmp_path / "out")
    assert manifest["arms"] == ["ppo", "rft"] and list(manifest["inputs"]) == ["runs.ppo.1", "runs.rft.1"]
    refused = call("--in", f"runs={base}/ppo.1")
    assert refused.returncode == 2 and "expected one of runs.KEY as NAME=DIR" in refused.stderr


def test_curves_hold_every_seed_and_a_second_run_ends_the_same(compared: Path) -> None:
    rows = pq.read_table(compared / "curves.parquet").to_pylist()
    assert len(rows) == 6 * 5
    greedy = [(row["step"], row["greedy_accuracy"]) for row in rows if row["arm"] == "ppo" and row["seed"] == 1]
    assert [pair for pair in greedy if pair[1] is not None] == [(0, 0.5), (2, 0.55), (3, 0.4)]
    before = {file.name: file.read_bytes() for file in compared.iterdir() if file.suffix in (".jsonl", ".parquet")}
    runs = {f"{arm}.{seed}": compared.parent / f"{arm}.{seed}" for arm in ("rft", "online_rft", "ppo") for seed in range(2)}
    compare.run(CompareConfig(), CompareInputs(runs), compared)
    assert before == {name: (compared / name).read_bytes() for name in before}


def test_the_report_redraws_figure_5_beside_the_papers_order(compared: Path) -> None:
    html = report_rl.methods(Source({"figure5": compared}))
    assert "RFT &lt; Online RFT" in html and "+6.0 ± 1.0" in html and "<svg" in html
    assert "51.0 ± 6.0" in html and "GRPO against PPO" in html and "2.25" in html
    assert "mathpipe ablate groups" in html and "mathpipe ablate figure5" not in html


def test_the_terminal_gets_the_table_of_the_methods(compared: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "tiny")
    out = plan.steps["ablate.figure5"].out
    out.parent.mkdir(parents=True)
    out.symlink_to(compared)
    lines = tables.closing(plan, ["ablate.figure5"]).splitlines()
    assert [line.split()[0] for line in lines] == ["arm", "rft", "online_rft", "ppo", "held-out"]
    assert lines[2].split()[1:5] == ["0.510", "0.060", "+0.060", "0.010"]
