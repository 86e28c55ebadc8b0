"""Stage evaluate: prompts, scoring and generation on a small random model; results, shots and resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mathpipe.eval import bbh, benchmarks, evaluate, generation, mmlu
from mathpipe.eval.config import BenchmarksConfig, EvaluateConfig
from mathpipe.pipeline.artifact import ContractError, read_metrics, write_json, write_parquet
from mathpipe.pretrain import tokenizer as bpe


def save_model(path: Path, seed: int, texts: list[str], positions: int = 512) -> None:
    """A random Llama with a tokenizer trained on `texts`."""
    tokenizer = bpe.train(texts, 384)
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=384, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=positions,
        tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(path)
    tokenizer.save_pretrained(path)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> evaluate.EvaluateInputs:
    """Stand-in benchmarks and three random models."""
    root = tmp_path_factory.mktemp("chain")
    (root / "benchmarks").mkdir()
    config = BenchmarksConfig(source="stand-in", stand_in_per_task=6)
    facts = benchmarks.run(config, benchmarks.BenchmarksInputs(), root / "benchmarks")
    write_json(root / "benchmarks" / "manifest.json", {"stage": "benchmarks", "hash": "00000000", **facts})
    texts = pq.read_table(root / "benchmarks" / "data" / "mmlu.parquet")["text"].to_pylist() * 3
    for seed, stage in enumerate(("pretrain", "sft", "grpo")):
        save_model(root / stage / "model", seed, texts)
    problems = [{"question": f"{n} + 1?", "answer": str(n + 1), "prompt": f"User: {n} + 1?\n\nAssistant:"} for n in range(7)]
    write_parquet(root / "grpo" / "held_out.parquet", pa.Table.from_pylist(problems))
    return evaluate.EvaluateInputs(root / "benchmarks", root / "pretrain", root / "sft", root / "grpo")


SMALL: dict[str, Any] = {
    "engine": "transformers", "mmlu_limit_per_subject": 2, "bbh_limit_per_task": 2, "bbh_max_new_tokens": 8, "held_out_max_new_tokens": 8,
    "held_out_limit": 5, "batch_tokens": 2048,
}  # fmt: skip


def test_results_items_and_metrics(inputs: evaluate.EvaluateInputs, tmp_path: Path) -> None:
    facts = evaluate.run(EvaluateConfig(**SMALL), inputs, tmp_path)
    assert [(r["model"], r["suite"]) for r in facts["results"]] == [
        (m, s) for m in ("base", "sft", "grpo") for s in ("mmlu", "bbh", "held_out")
    ]
    counts = {r["suite"]: (r["n"], r["stand_in"]) for r in facts["results"]}
    assert counts == {"mmlu": (16, True), "bbh": (8, True), "held_out": (5, False)}
    assert [(row["model"], row["suite"], row["n"]) for row in read_metrics(tmp_path)] == [
        (r["model"], r["suite"], r["n"]) for r in facts["results"]
    ]
    for row in pq.read_table(tmp_path / "items" / "sft-mmlu.parquet").to_pylist():
        assert row["extracted"] == "ABCD"[row["logprobs"].index(max(row["logprobs"]))]
        assert row["reason"] == ("correct" if row["extracted"] == row["target"] else "wrong")
        assert row["prompt"].count("Answer:") == row["num_shots"] + 1
    assert {row["num_shots"] for row in pq.read_table(tmp_path / "items" / "sft-bbh.parquet").to_pylist()} <= {0, 1, 2, 3}


def test_a_killed_run_keeps_finished_pairs_and_ends_the_same(
    inputs: evaluate.EvaluateInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig(**{**SMALL, "suites": ("mmlu", "held_out")})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        out.mkdir()
    facts = evaluate.run(config, inputs, whole)
    calls = []
    real = evaluate.EVALUATE["mmlu"]

    def dies_at_second(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setitem(evaluate.EVALUATE, "mmlu", dies_at_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(config, inputs, killed)
    assert sorted(file.name for file in (killed / "items").iterdir()) == ["base-held_out.parquet", "base-mmlu.parquet"]
    assert evaluate.run(config, inputs, killed) == facts
    assert len(calls) == 4, "base-mmlu was kept: one call before the kill, the killed one, sft and grpo"
    for file in (whole / "items").iterdir():
        assert file.read_bytes() == (killed / "items" / file.name).read_bytes()
    assert (whole / "metrics.jsonl").read_bytes() == (killed / "metrics.jsonl").read_bytes()


def test_mmlu_prompt_is_the_published_one() -> None:
    shot = {"question": "2 + 2?", "choices": ["1", "4", "3", "2"], "answer": 1}
    row = {"question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": 1}
    assert mmlu.prompt("high_school_physics", [shot], row) == (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "2 + 2?\nA. 1\nB. 4\nC. 3\nD. 2\nAnswer: B\n\n1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    )


PUBLISHED = (
    "Sort.\n\nQ: one\nA: Let's think step by step.\nSo the answer is a.\n\nQ: two\nA: Let's think step by step.\nSo the answer is b."
)


@pytest.mark.parametrize(("shots", "kept"), [(2, ["one", "two", "x"]), (1, ["two", "x"]), (0, ["x"])])
def test_bbh_prompt_drops_shots_from_the_front(shots: int, kept: list[str]) -> None:
    text = bbh.prompt(PUBLISHED, shots, "x")
    assert text.startswith("Sort.\n\nQ: ") and text.endswith("\n\nQ: x\nA: Let's think step by step.\n")
    assert [block.split("\n")[0] for block in text.split("\n\nQ: ")[1:]] == kept


@pytest.mark.parametrize(
    ("completion", "target", "extracted", "right"),
    [
        ("So the answer is True.", "True", "True", True),
        ("So the answer is (B).", "(B)", "(B)", True),
        ("So the answer is (B) 01/03/1963.", "(B)", "(B) 01/03/1963", True),
        ("So the answer is (A). Wait, so the answer is (B).", "(B)", "(B)", True),
        ("So the answer is } ] >.", "} ] >", "} ] >", True),
        ("So the answer is Quebec quay queen.", "Quebec quay queen", "Quebec quay queen", True),  # Q stops nothing
        ("So the answer is true.", "True", "true", False),
        ("True", "True", None, False),
        ("So the answer is .", "", None, False),  # two missing answers are not equal
        ("So the answer is", "None", None, False),
    ],
)
def test_bbh_extraction(completion: str, target: str, extracted: str | None, right: bool) -> None:
    assert bbh.extract(completion) == extracted
    assert bbh.is_right(extracted, target) == right


def test_stop_strings_end_a_question_not_a_word() -> None:
    assert generation.cut("A: the Queen.\n\nQ: next\n\nQ: more", bbh.STOP) == "A: the Queen."


def test_shots_are_dropped_and_reported_when_the_context_is_short(inputs: evaluate.EvaluateInputs, tmp_path: Path) -> None:
    config = EvaluateConfig(**{**SMALL, "suites": ("mmlu",), "max_context": 200})
    facts = evaluate.run(config, inputs, tmp_path)
    shots = facts["results"][0]["shots"]
    assert sum(shots.values()) == 16 and max(map(int, shots)) < 5


def test_a_missing_model_or_held_out_file_is_named(inputs: evaluate.EvaluateInputs, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"nowhere.model: no model there"):
        evaluate.run(
            EvaluateConfig(**SMALL), evaluate.EvaluateInputs(inputs.benchmarks, tmp_path / "nowhere", inputs.sft, inputs.grpo), tmp_path
        )
    broken = evaluate.EvaluateInputs(inputs.benchmarks, inputs.pretrain, inputs.sft, inputs.sft)
    with pytest.raises(ContractError, match=r"held_out.parquet: missing"):
        evaluate.run(EvaluateConfig(**{**SMALL, "suites": ("held_out",)}), broken, tmp_path)


def test_summary_says_when_a_score_is_chance() -> None:
    def items(right: int, n: int) -> list[dict[str, Any]]:
        return [
            {"model": "base", "suite": "mmlu", "group": str(i % 2), "num_shots": 5, "reason": "correct" if i < right else "wrong"}
            for i in range(n)
        ]

    at_chance = evaluate.summarise(items(27, 100), stand_in=False)
    assert at_chance["score"] == 0.27 and math.isclose(at_chance["stderr"], math.sqrt(0.27 * 0.73 / 99)) and "note" in at_chance
    assert "note" not in evaluate.summarise(items(60, 100), stand_in=False)


def test_a_score_of_zero_has_an_interval() -> None:
    """By hand, 0 of 10: z² / (10 + z²) with z = 1.96; 5 of 10 is symmetric about one half."""
    assert evaluate.wilson(0.0, 10) == (0.0, pytest.approx(3.8416 / 13.8416))
    low, high = evaluate.wilson(0.5, 10)
    assert low == pytest.approx(1 - high) and low == pytest.approx(0.2366, abs=1e-4)
    assert evaluate.wilson(1.0, 10)[1] == 1.0


@pytest.mark.parametrize(
    "values",
    [{"suites": ("mmlu", "gsm8k")}, {"engine": "llama.cpp"}, {"mmlu_shots": 6}, {"bbh_max_new_tokens": 4096}, {"held_out_limit": -1}],
)
def test_bad_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        EvaluateConfig(**values)
