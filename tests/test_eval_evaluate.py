"""Stage evaluate: prompts, scoring and generation on a small random model; results, shots and resume."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mathpipe.eval import bbh, benchmarks, cache, evaluate, generation, mmlu, models
from mathpipe.eval.answers import Session
from mathpipe.eval.config import BenchmarksConfig, EvaluateConfig
from mathpipe.eval.grader import Grader
from mathpipe.eval.sandbox import Sandbox
from mathpipe.eval.tasks import TASKS
from mathpipe.pipeline.artifact import ContractError, read_metrics, write_json, write_parquet
from mathpipe.pipeline.plan import artifact_folders
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
        write_json(root / stage / "manifest.json", {"stage": stage, "hash": f"{seed:08x}"})
    problems = [{"question": f"{n} + 1?", "answer": str(n + 1), "prompt": f"User: {n} + 1?\n\nAssistant:"} for n in range(7)]
    write_parquet(root / "grpo" / "held_out.parquet", pa.Table.from_pylist(problems))
    return evaluate.EvaluateInputs(root / "benchmarks", root / "pretrain", root / "sft", root / "grpo")


SMALL: dict[str, Any] = {
    "engine": "own", "tasks": ("mmlu", "bbh", "held_out"), "limits": {"mmlu": 16, "bbh": 8, "held_out": 5}, "max_new_tokens": 8,
    "batch_tokens": 2048,
}  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An artifact's folder in a runs folder of its own, where answers of earlier tests are not kept."""
    path = tmp_path / "runs" / "evaluate-00000000"
    path.mkdir(parents=True)
    return path


def test_results_items_and_metrics(inputs: evaluate.EvaluateInputs, out: Path) -> None:
    facts = evaluate.run(EvaluateConfig(**SMALL, num_samples=4, sampled=("held_out",)), inputs, out)
    tasks = ("mmlu", "bbh", "held_out", "held_out@4")
    assert [(r["model"], r["task"]) for r in facts["results"]] == [(m, t) for m in ("base", "sft", "grpo") for t in tasks]
    counts = {r["task"]: (r["n"], r["stand_in"]) for r in facts["results"]}
    assert counts == {"mmlu": (16, True), "bbh": (8, True), "held_out": (5, False), "held_out@4": (5, False)}
    assert [(row["model"], row["task"], row["n"]) for row in read_metrics(out)] == [
        (r["model"], r["task"], r["n"]) for r in facts["results"]
    ]
    for row in pq.read_table(out / "items" / "sft-mmlu.parquet").to_pylist():
        assert row["extracted"] == "ABCD"[row["logprobs"].index(max(row["logprobs"]))]
        assert row["reason"] == ("correct" if row["extracted"] == row["target"] else "wrong")
        assert row["prompt"].count("Answer:") == row["num_shots"] + 1
    assert {row["num_shots"] for row in pq.read_table(out / "items" / "sft-bbh.parquet").to_pylist()} <= {0, 1, 2, 3}
    sampled = pq.read_table(out / "items" / "grpo-held_out@4.parquet").to_pylist()
    assert [row["sample"] for row in sampled] == [0, 1, 2, 3] * 5 and len({row["completion"] for row in sampled[:4]}) > 1
    assert list(facts["results"][3]["maj"]) == list(facts["results"][3]["pass"]) == ["1", "2", "4"]
    assert [(d["task"], d["before"], d["after"], d["n"]) for d in facts["paired"]][:5] == [
        ("mmlu", "base", "sft", 16), ("bbh", "base", "sft", 8), ("held_out", "base", "sft", 5), ("held_out@4", "base", "sft", 5),
        ("mmlu", "sft", "grpo", 16),
    ]  # fmt: skip
    for difference in facts["paired"]:
        score = {r["model"]: r["score"] for r in facts["results"] if r["task"] == difference["task"]}
        assert difference["difference"] == pytest.approx(score[difference["after"]] - score[difference["before"]])


def test_a_killed_run_keeps_finished_pairs_and_ends_the_same(
    inputs: evaluate.EvaluateInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig(**{**SMALL, "tasks": ("held_out", "mmlu")})
    whole, killed = tmp_path / "a" / "whole", tmp_path / "b" / "killed"
    for out in (whole, killed):
        out.mkdir(parents=True)
    facts = evaluate.run(config, inputs, whole)
    calls = []
    real = Session.answer

    def dies_at_fourth(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(Session, "answer", dies_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(config, inputs, killed)
    assert sorted(file.name for file in (killed / "items").iterdir()) == [
        "base-held_out.parquet", "base-mmlu.parquet", "sft-held_out.parquet",
    ]  # fmt: skip
    assert evaluate.run(config, inputs, killed) == facts
    assert len(calls) == 4 + 3, "what was finished is kept: three calls before the kill, the killed one, and the three that were left"
    for file in (whole / "items").iterdir():
        assert file.read_bytes() == (killed / "items" / file.name).read_bytes()
    assert (whole / "metrics.jsonl").read_bytes() == (killed / "metrics.jsonl").read_bytes()


def test_answers_are_kept_for_models_that_did_not_change(inputs: evaluate.EvaluateInputs, tmp_path: Path) -> None:
    chain = tmp_path / "chain"
    shutil.copytree(inputs.benchmarks.parent, chain)
    moved = evaluate.EvaluateInputs(*(chain / name for name in ("benchmarks", "pretrain", "sft", "grpo")))
    config = EvaluateConfig(**{**SMALL, "tasks": ("mmlu", "held_out")})

    def run(name: str, changed: EvaluateConfig = config) -> tuple[int, list[float]]:
        (tmp_path / "runs" / name).mkdir(parents=True)
        facts = evaluate.run(changed, moved, tmp_path / "runs" / name)
        return facts["num_cached"], [result["score"] for result in facts["results"]]

    first = run("evaluate-00000000")
    assert first[0] == 0
    assert run("evaluate-11111111") == (6, first[1])
    write_json(moved.grpo / "manifest.json", {"stage": "grpo", "hash": "22222222"})
    assert run("evaluate-22222222") == (4, first[1]), "a new GRPO artifact: base and SFT as before"
    assert run("evaluate-33333333", dataclasses.replace(config, limits={**SMALL["limits"], "mmlu": 8}))[0] == 3, "held_out alone as before"
    assert set(artifact_folders(tmp_path / "runs")) == {"evaluate"}, "the folder of kept answers is no artifact"
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.name.startswith(".")} == {cache.FOLDER}
    problems = pq.read_table(moved.grpo / "held_out.parquet").slice(1)
    write_parquet(moved.grpo / "held_out.parquet", problems)
    assert run("evaluate-44444444")[0] == 3, "other problems: MMLU as before"


def test_answers_that_cannot_be_read_are_asked_again(inputs: evaluate.EvaluateInputs, out: Path) -> None:
    config = EvaluateConfig(**{**SMALL, "tasks": ("mmlu",)})
    facts = evaluate.run(config, inputs, out)
    whole = {file: file.read_bytes() for file in [*(out / "items").iterdir(), *(out.parent / cache.FOLDER).iterdir()]}
    for file, content in whole.items():
        file.write_bytes(content[: len(content) // 2] if file.name != "grpo-mmlu.parquet" else b"")
    assert evaluate.run(config, inputs, out) == facts
    assert {file: file.read_bytes() for file in whole} == whole


def test_answers_may_be_kept_by_several_at_once(tmp_path: Path) -> None:
    """Each writes its own half-written file: with one name for all, one takes away the other's or finishes it too soon."""
    source, out = tmp_path / "answers.parquet", tmp_path / "evaluate-00000000"
    write_parquet(source, pa.table({"item": [str(n) for n in range(50_000)]}))
    with ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(cache.keep, out, "key", source) for _ in range(200)]:
            one.result()
    assert [file.name for file in (tmp_path / cache.FOLDER).iterdir()] == ["key.parquet"]
    assert cache.take(out, "key", out / "items" / "a.parquet") and (out / "items" / "a.parquet").read_bytes() == source.read_bytes()


def test_what_is_missing_is_said_before_anything_is_asked(inputs: evaluate.EvaluateInputs, tmp_path: Path, out: Path) -> None:
    chain = tmp_path / "chain"
    shutil.copytree(inputs.benchmarks.parent, chain)
    moved = evaluate.EvaluateInputs(*(chain / name for name in ("benchmarks", "pretrain", "sft", "grpo")))
    file = moved.benchmarks / "gsm8k.parquet"
    config = EvaluateConfig(**{**SMALL, "tasks": ("mmlu", "gsm8k")})
    for spoil, wrong in (
        (lambda: write_parquet(file, pq.read_table(file).slice(0, 0)), "no items for task 'gsm8k'; leave it out of evaluate.tasks"),
        (lambda: file.write_bytes(b"PAR1"), "cannot be read"),
        (file.unlink, "missing; run stage benchmarks again"),
    ):
        spoil()
        with pytest.raises(ContractError, match=f"gsm8k.parquet: {wrong}"):
            evaluate.run(config, moved, out)
        assert not (out / "items").exists()


def test_the_chain_has_the_start_model_and_every_iteration(inputs: evaluate.EvaluateInputs, tmp_path: Path) -> None:
    chain = tmp_path / "chain"
    shutil.copytree(inputs.benchmarks.parent, chain)
    (chain / "pretrain" / "config.toml").write_text(f'[pretrain]\nstart = "{chain / "pretrain" / "model"}"\n')
    for number in ("1", "2", "10"):
        shutil.copytree(chain / "grpo" / "model", chain / "grpo" / "iterations" / number / "model")
    found = models.chain(evaluate.EvaluateInputs(*(chain / name for name in ("benchmarks", "pretrain", "sft", "grpo"))))
    assert [(model.name, model.chat) for model in found] == [
        ("start", False), ("base", False), ("sft", True), ("grpo.1", True), ("grpo.2", True), ("grpo.10", True), ("grpo", True),
    ]  # fmt: skip
    wanted = [(one.model.name, one.name) for one in evaluate.evaluations(EvaluateConfig(tasks=("gsm8k-tir", "gsm8k")), found)]
    assert wanted[:4] == [("start", "gsm8k"), ("base", "gsm8k"), ("sft", "gsm8k-tir"), ("sft", "gsm8k")], "no base model has tools"


class Parrot:
    """A generator that says what it is told."""

    def __init__(self, says: Callable[[str], str], tokenizer: Any) -> None:
        self.says, self.tokenizer = says, tokenizer
        self.stops: list[tuple[str, ...]] = []

    def next_logprobs(self, prompts: Any, tokens: Any) -> Any:
        raise NotImplementedError

    def generate(
        self, prompts: Any, max_new_tokens: int, stop: Any = (), num_samples: int = 1, temperature: float = 0.0, top_p: float = 1.0,
        seeds: Any = None,
    ) -> list[list[str]]:  # fmt: skip
        self.stops.append(tuple(stop))
        return [[generation.cut(self.says(self.tokenizer.decode(prompt)), stop)] * num_samples for prompt in prompts]


@pytest.mark.parametrize(
    ("task", "says", "chat", "extracted", "reason"),
    [
        ("gsm8k-pot", "```python\nprint(6 * 7)\n```\nQ: more", False, "42", "correct"),
        ("gsm8k-pot", " I compute.\n```python\nprint(40 + 1)\n```\nDone, 42.", True, "41", "wrong"),
        ("gsm8k-pot", "```python\nprint(1 / 0)\n```\n", False, None, "program_error"),
        ("gsm8k-pot", "```python\nx = 42\n```\n", False, None, "no_answer"),
        ("gsm8k-pot", "The answer is 42.", False, None, "no_program"),
        ("gsm8k-tir", "```python\nprint(6 * 7)\n```\n```output", True, "42", "correct"),
        ("gsm8k-tir", "So \\boxed{43}.", True, "43", "wrong"),
        ("gsm8k", "6 * 7 = 42. The answer is 42.\n\nQ: The answer is 3.", False, "42", "correct"),
        ("gsm8k", "\\boxed{41}, no, \\boxed{42}", True, "42", "correct"),
        ("gsm8k", "42", True, None, "no_answer"),
    ],
)
def test_answers_by_text_and_by_programs(
    inputs: evaluate.EvaluateInputs, task: str, says: str, chat: bool, extracted: str | None, reason: str
) -> None:
    with Grader() as grader, Sandbox("none", num_workers=1) as sandbox:
        session = Session(EvaluateConfig(), "own", grader, sandbox)
        session.load(inputs.sft / "model")
        parrot = session._generator = Parrot(lambda prompt: says, session.loaded.tokenizer)
        row = {"item": "7", "group": "", "question": "How much is 6 times 7?", "target": "42"}
        (item,) = session.answer(TASKS[task], [row], "sft", chat)
    assert (item.extracted, item.reason) == (extracted, reason)
    assert ("User: " in item.prompt) == chat and (chat or item.num_shots > 0)
    assert task == "gsm8k-tir" or parrot.stops == [() if chat else TASKS[task].stop]


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_the_harness_is_an_engine(inputs: evaluate.EvaluateInputs, tmp_path: Path) -> None:
    prompts = []
    for engine in ("lm-eval-own", "own"):
        (tmp_path / engine).mkdir()
        settings = {**SMALL, "engine": engine, "tasks": ("gsm8k",), "limits": {"gsm8k": 3}}
        facts = evaluate.run(EvaluateConfig(**settings, shots={"gsm8k": 0}), inputs, tmp_path / engine)
        assert facts["engine"] == engine and [(r["model"], r["n"]) for r in facts["results"]] == [("base", 3), ("sft", 3), ("grpo", 3)]
        assert facts["results"][1]["chat"] == (engine == "own"), "the harness asks every model as a base model"
        prompts.append(pq.read_table(tmp_path / engine / "items" / "base-gsm8k.parquet")["prompt"].to_pylist())
    assert prompts[0] == prompts[1]


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


@pytest.mark.parametrize(("shots", "kept"), [(2, ["one", "two", "x"]), (1, ["one", "x"]), (0, ["x"])])
def test_bbh_prompt_keeps_the_first_shots(shots: int, kept: list[str]) -> None:
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


def test_shots_are_dropped_and_reported_when_the_context_is_short(inputs: evaluate.EvaluateInputs, out: Path) -> None:
    config = EvaluateConfig(**{**SMALL, "tasks": ("mmlu",), "max_context": 200})
    facts = evaluate.run(config, inputs, out)
    shots = facts["results"][0]["shots"]
    assert sum(shots.values()) == 16 and max(map(int, shots)) < 5


def test_a_missing_model_suite_or_held_out_file_is_named(inputs: evaluate.EvaluateInputs, out: Path) -> None:
    write_json(out / "manifest.json", {"stage": "pretrain", "hash": "00000000"})
    with pytest.raises(ContractError, match=r"evaluate-00000000.model: no model there"):
        evaluate.run(EvaluateConfig(**SMALL), evaluate.EvaluateInputs(inputs.benchmarks, out, inputs.sft, inputs.grpo), out)
    broken = evaluate.EvaluateInputs(inputs.benchmarks, inputs.pretrain, inputs.sft, inputs.sft)
    with pytest.raises(ContractError, match=r"held_out.parquet: missing"):
        evaluate.run(EvaluateConfig(**{**SMALL, "tasks": ("held_out",)}), broken, out)
    with pytest.raises(ContractError, match=r"ocw.parquet: missing; run stage benchmarks again"):
        TASKS["ocw"].rows(out)


def test_summary_says_when_a_score_is_chance() -> None:
    def items(right: int, n: int) -> list[dict[str, Any]]:
        return [
            {"suite": "mmlu", "item": str(i), "group": ("anatomy", "virology")[i % 2], "num_shots": 5}
            | {"reason": "correct" if i < right else "wrong"}
            for i in range(n)
        ]

    at_chance = evaluate.summarise(items(27, 100))
    assert at_chance["categories"] == {"STEM": 0.28, "other": 0.26} and at_chance["groups"] == {"anatomy": 0.28, "virology": 0.26}
    assert at_chance["macro"] == pytest.approx(0.27)
    assert at_chance["score"] == 0.27 and math.isclose(at_chance["stderr"], math.sqrt(0.27 * 0.73 / 99)) and "note" in at_chance
    assert "note" not in evaluate.summarise(items(60, 100))


def test_samples_are_votes_by_value() -> None:
    """7 and 7.0 are one vote, so two of three say what is right."""
    rows = [
        {"suite": "gsm8k", "item": "0", "group": "", "num_shots": 0, "extracted": text, "reason": "wrong" if text == "8" else "correct"}
        for text in ("8", "7", "7.0", "8")
    ]
    found = evaluate.summarise(rows)
    assert (found["n"], found["num_samples"], found["score"]) == (1, 4, 0.5)
    assert found["pass"] == {"1": (0.5, 0.0), "2": (pytest.approx(5 / 6), 0.0), "4": (1.0, 0.0)}
    assert found["maj"]["4"] == (0.0, 0.0), "two of each: the first one's"
    assert evaluate.answer_of({"extracted": "7.0"}) == evaluate.answer_of({"extracted": "$7$"}) != evaluate.answer_of({"extracted": "x+7"})
    assert evaluate.answer_of({"extracted": r"7\text{ cm}"}) == evaluate.answer_of({"extracted": "7"})
    assert evaluate.answer_of({"extracted": None}) is None


def test_a_limit_takes_evenly_from_groups() -> None:
    rows = [{"item": str(i), "group": "a" if i < 20 else "b" if i < 23 else "c"} for i in range(40)]
    found = evaluate.subsample(rows, 10, "seed")
    counts = Counter(row["group"] for row in found)
    assert counts["b"] == 3 and {counts["a"], counts["c"]} == {3, 4} and found == sorted(found, key=lambda row: int(row["item"]))
    assert found == evaluate.subsample(rows, 10, "seed") != evaluate.subsample(rows, 10, "other")
    assert evaluate.subsample(rows, 0, "seed") == rows == evaluate.subsample(rows, 40, "seed")


@pytest.mark.parametrize(
    "values",
    [
        {"tasks": ("mmlu", "gsm9k")}, {"tasks": ()}, {"tasks": ("bbh", "bbh")}, {"engine": "llama.cpp"}, {"limits": {"bbh": -1}},
        {"limits": {"nothing": 1}}, {"max_new_tokens": 0}, {"max_context": 1}, {"temperature": 0.0},
        {"num_samples": 2, "sampled": ("mmlu",)},
        {"engine": "lm-eval", "tasks": ("mmlu", "ocw")}, {"engine": "lm-eval", "tasks": ("gsm8k",), "num_samples": 4},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        EvaluateConfig(**values)
