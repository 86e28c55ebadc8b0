"""The engine against hand-written arithmetic and against itself: ZeRO stages, processes, clipping, bf16, skipped steps, MFU."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mathpipe.pipeline import artifact
from mathpipe.pipeline.config import Runtime
from mathpipe.pretrain import model, optim, train, watch
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain.config import PretrainConfig

HERE = Path(__file__).parent
CONSTANT = {"schedule": "constant", "warmup_steps": 0}
SKIP = {**CONSTANT, "on_bad_loss": "skip", "poison": [7]}


def run_groups(groups: list[dict[str, Any]]) -> list[str]:
    """How each group of engine_worker.py ended."""
    done = subprocess.run(
        [sys.executable, str(HERE / "engine_worker.py"), json.dumps(groups)], env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in artifact.read_metrics(out)]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "weights.pt")


def difference(one: Path, other: Path) -> float:
    """Largest difference of two runs' final weights."""
    pairs = zip(weights(one).items(), weights(other).items(), strict=True)
    return max(float((a - b).abs().max()) for (name, a), (same, b) in pairs if name == same)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run of this file, made by two process groups."""
    base = tmp_path_factory.mktemp("engine")
    single = {
        "one": {}, "recomputed": {"activation_checkpointing": True}, "whole": {"micro_batch_tokens": 8 * 24},
        "clipped-0": CONSTANT | {"steps": 2},
        "bf16-0": {"bf16": True}, "unskipped-0": CONSTANT | {"steps": 8, "data": [*range(7), 8]}, "skipped-0": SKIP | {"steps": 9},
        "spike": {"noise": [14], "spike_factor": 1.15, "on_bad_loss": "skip"}, "stop": {"poison": [4]},
        "five": {"poison": list(range(3, 20)), "on_bad_loss": "skip"},
    }  # fmt: skip
    double: dict[str, dict[str, Any]] = {f"zero-{stage}": {"zero_stage": stage} for stage in range(4)}
    double |= {"clipped-2": CONSTANT | {"steps": 2, "zero_stage": 2}, "bf16-2": {"bf16": True, "zero_stage": 2}}
    double |= {"unskipped-2": single["unskipped-0"] | {"zero_stage": 2}, "skipped-2": single["skipped-0"] | {"zero_stage": 2}}
    groups = [
        {"processes": processes, "runs": [{"out": str(base / name), **run} for name, run in named.items()]}
        for processes, named in ((1, single), (2, double))
    ]
    assert run_groups(groups) == ["done", "done"]
    return base


@pytest.mark.parametrize("stage", range(4))
def test_two_processes_match_the_single_one_at_every_step(runs: Path, stage: int) -> None:
    one, two = losses(runs / "one"), losses(runs / f"zero-{stage}")
    assert len(one) == len(two) == 20 and one[-1] < 0.75 * one[0]
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-3
    assert difference(runs / "one", runs / f"zero-{stage}") < 1e-4


@pytest.mark.parametrize("name", ["recomputed", "whole"])
def test_recomputed_activations_and_other_micro_batches_change_nothing(runs: Path, name: str) -> None:
    assert losses(runs / name) == pytest.approx(losses(runs / "one"), abs=1e-5)


def test_losses_by_source_add_up(runs: Path) -> None:
    from engine_worker import rows_of

    for row in artifact.read_metrics(runs / "zero-2"):
        share = rows_of(row["step"] - 1)[2].mean()
        assert row["loss"] == pytest.approx((1 - share) * row["loss/ones"] + share * row["loss/threes"], rel=1e-5)


@pytest.mark.parametrize("stage", [0, 2])
def test_two_steps_are_adamw_of_the_clipped_gradient(runs: Path, stage: int) -> None:
    """Written out: g ← g · min(1, 0.5 / |g|), m, v with β = (0.9, 0.95), bias corrections, decay 0.1 on matrices alone."""
    from engine_worker import ROWS, TOY, VOCABULARY, WIDTH, rows_of

    network = model.build(PretrainConfig(**TOY), VOCABULARY, 0, 1)
    loss_of, moments = model.TokenLoss(network), {}
    for step in (1, 2):
        ids, _, _ = rows_of(step - 1)
        network.zero_grad()
        (loss_of(ids, ids).sum() / (ROWS * (WIDTH - 1))).backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in network.parameters()))
        assert norm > 0.5, "it is clipped"
        assert artifact.read_metrics(runs / f"clipped-{stage}")[step - 1]["grad_norm"] == pytest.approx(norm, rel=1e-4)
        with torch.no_grad():
            for name, p in network.named_parameters():
                g = p.grad * 0.5 / norm
                m, v = moments.get(name, (0.0, 0.0))
                m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
                moments[name] = (m, v)
                p -= 1e-2 * (0.1 * p if p.ndim == 2 else 0.0)
                p -= 1e-2 * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    found = weights(runs / f"clipped-{stage}")
    for name, p in network.named_parameters():
        torch.testing.assert_close(found[name], p.detach(), atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("stage", [0, 2])
def test_bf16_weights_have_fp32_masters(runs: Path, stage: int) -> None:
    out = runs / f"bf16-{stage}"
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.bfloat16}
    assert set(json.loads((out / "facts.json").read_text())["optimizer_dtypes"]) == {"torch.float32"}
    assert losses(out) == pytest.approx(losses(runs / "one"), abs=0.1)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_skipped_step_leaves_weights_and_moments_as_they_were(runs: Path, stage: int) -> None:
    """A nan in one process at step 8 of 9 ends as 8 steps without that step do, to the bit."""
    assert difference(runs / f"skipped-{stage}", runs / f"unskipped-{stage}") == 0
    rows = artifact.read_metrics(runs / f"skipped-{stage}")
    assert "loss" not in rows[7] and rows[7]["skipped"] == rows[8]["skipped"] == 1
    assert rows[8]["loss"] == artifact.read_metrics(runs / f"unskipped-{stage}")[7]["loss"]
    saved = torch.load(runs / f"skipped-{stage}" / "bad_batches" / f"step-000008-{stage // 2}.pt", weights_only=False)
    assert np.isnan(np.concatenate(saved["losses"])).all() and saved["why"] == "the loss is nan"


def test_a_spike_is_skipped_and_its_batch_kept(runs: Path) -> None:
    from engine_worker import rows_of

    saved = torch.load(runs / "spike" / "bad_batches" / "step-000015-0.pt", weights_only=False)
    assert torch.equal(torch.cat([part[0] for part in saved["parts"]]), rows_of(14)[0])
    assert "times the usual" in saved["why"]
    assert json.loads((runs / "spike" / "facts.json").read_text())["num_skipped_steps"] == 1


def test_a_bad_loss_stops_with_the_place_of_its_batch(runs: Path) -> None:
    message = (runs / "stop" / "error.txt").read_text()
    assert message.startswith("step 5: the loss is nan; its batch is in") and "on_bad_loss" in message
    assert (runs / "stop" / "bad_batches" / "step-000005-0.pt").exists() and len(losses(runs / "stop")) == 4


def test_five_skipped_steps_in_a_row_stop(runs: Path) -> None:
    assert "step 8:" in (runs / "five" / "error.txt").read_text()
    assert len(list((runs / "five" / "bad_batches").iterdir())) == 5


def test_spikes_are_told_from_the_median_of_the_last_fifty(tmp_path: Path) -> None:
    seen = watch.Watch("skip", 2.0, tmp_path, None)
    for loss in [9.0] * 9:
        seen.good(loss)
    assert not seen.bad_loss(1000.0), "nine losses are too few to know"
    for loss in [1.0] * 50:
        seen.good(loss)
    assert not seen.bad_loss(2.0) and seen.bad_loss(2.01) == "the loss is 2.01, 2.01 times the usual 1"
    assert seen.bad_loss(math.inf) == "the loss is inf"
    again = watch.Watch("skip", 2.0, tmp_path, json.loads(json.dumps(seen.state())))
    assert again.state() == seen.state() and len(again.losses) == 50
    assert not watch.Watch("skip", 0.0, tmp_path, seen.state()).bad_loss(1e9), "0 is off"


def test_flops_by_hand() -> None:
    """2 layers of 4·16² + 3·16·32 and 2 norms of 16, a last norm, a head of 64·16: 6·6,224 + 12·2·16·24 = 46,560."""
    config = PretrainConfig(hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2)
    assert 2 * (4 * 256 + 1536 + 32) + 16 + 1024 == 6224
    assert watch.flops_per_token(model.build(config, 64, 0, 1), 24) == 6 * 6224 + 12 * 2 * 16 * 24


def test_the_peak_is_stated_or_measured() -> None:
    assert watch.peak_flops(torch.device("cpu"), torch.float32, 0.5) == 0.5e12
    assert 1e8 < watch.peak_flops(torch.device("cpu"), torch.float32, 0.0) < 1e13


def test_mfu_is_speed_by_flops_by_peak(runs: Path) -> None:
    rows = artifact.read_metrics(runs / "one")
    ratios = [row["mfu"] / row["tokens_per_s"] for row in rows]
    assert ratios == pytest.approx([ratios[0]] * 20) and 0 < rows[-1]["mfu"] < 1 and rows[-1]["peak_memory_gb"] > 0.1


@pytest.mark.parametrize(("rows", "size", "expected"), [(8, 2, (2, 4)), (8, 16, (8, 1)), (6, 3, (3, 2))])
def test_micro_batches(rows: int, size: int, expected: tuple[int, int]) -> None:
    assert optim.micro_batches(rows, size, "x") == expected


def test_a_batch_that_does_not_divide_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "world_size", lambda: 4)
    with pytest.raises(ValueError, match="batch_tokens 2560 holds 10 rows, not a multiple of 4 processes"):
        optim.micro_batches(10, 2, "batch_tokens 2560")
    with pytest.raises(ValueError, match="6 rows a step, which do not divide into micro-batches of 4; take 1, 2, 3 rows"):
        optim.micro_batches(24, 4, "batch_tokens")


@pytest.mark.parametrize(("field", "value"), [
    ("on_bad_loss", "ignore"), ("spike_factor", 0.9), ("keep_checkpoints", 0), ("micro_batch_tokens", 100), ("zero_stage", 4),
    ("context", 0), ("num_heads", 0), ("num_layers", 0), ("total_tokens", 0), ("warmup_steps", -1), ("peak_lr", -1.0),
    ("peak_lr", float("nan")),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(PretrainConfig(), **{field: value})


@pytest.mark.slow
def test_compiled_layers_change_nothing(tmp_path: Path) -> None:
    made = {name: {"out": str(tmp_path / name), "steps": 5, "compile": name == "compiled"} for name in ("plain", "compiled")}
    assert run_groups([{"processes": 1, "runs": list(made.values())}]) == ["done"]
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)


@pytest.mark.slow
def test_vllm_opens_what_zero_3_trained_and_says_the_same(tmp_path: Path) -> None:
    """The weights of two processes, put together, in the transformers layout: greedy tokens of vLLM and transformers agree."""
    big = {"hidden_size": 64, "intermediate_size": 128, "zero_stage": 3}
    assert run_groups([{"processes": 2, "runs": [{"out": str(tmp_path), **big}]}]) == ["done"]
    from engine_worker import TOY, VOCABULARY

    vocabulary = bpe.train(["one two three"] * 10, 300)
    network = model.build(PretrainConfig(**TOY | big), VOCABULARY, 0, 1)
    model.save(network, vocabulary, tmp_path, weights(tmp_path))
    again = model.load(tmp_path / "model")
    assert all(torch.equal(p, weights(tmp_path)[name]) for name, p in again.named_parameters())
    prompt = [[5, 6, 7, 8]]
    expected = again.generate(torch.tensor(prompt), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=1)[0, 4:].tolist()
    code = (
        "import json, vllm\n"
        f"llm = vllm.LLM({str(tmp_path / 'model')!r}, dtype='float32', enforce_eager=True, max_model_len=64, skip_tokenizer_init=True)\n"
        "params = vllm.SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)\n"
        f"done = llm.generate([vllm.TokensPrompt(prompt_token_ids={prompt[0]})], params, use_tqdm=False)\n"
        "print(json.dumps(list(done[0].outputs[0].token_ids)))\n"
    )
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
                                "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_runtime_refuses_a_negative_peak() -> None:
    with pytest.raises(ValueError, match="peak_tflops"):
        Runtime(peak_tflops=-1.0)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_held_out_loss_counts_no_filling_window(rows: int) -> None:
    """5 windows in passes of `rows`, the last filled up: as all at once."""
    from types import SimpleNamespace

    from engine_worker import TOY, VOCABULARY

    loss_of = model.TokenLoss(model.build(PretrainConfig(**TOY), VOCABULARY, 0, 1))
    data = np.arange(5 * 24 + 7) * 5 % VOCABULARY
    with torch.no_grad():
        ids = torch.from_numpy(data[: 5 * 24]).view(5, 24)
        expected = float(loss_of(ids, ids).sum())
    nats, count = train.held_out_nats(SimpleNamespace(module=loss_of, device=torch.device("cpu")), data, 24, rows)
    assert count == 5 * 23 and nats == pytest.approx(expected, rel=1e-5)


def test_held_out_documents_are_isolated_where_training_isolates_them() -> None:
    """Windows of 12 with EOS (0) at places 4 and 9: each document as if it stood alone, its first token not predicted."""
    from types import SimpleNamespace

    from engine_worker import TOY, VOCABULARY

    loss_of = model.TokenLoss(model.build(PretrainConfig(**TOY), VOCABULARY, 0, 1))
    ids = torch.randint(2, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))
    ids[:, [4, 9]] = 0
    engine = SimpleNamespace(module=loss_of, device=torch.device("cpu"))
    with torch.no_grad():
        alone = sum(float(loss_of(part, part).sum()) for part in ids.split([5, 5, 2], 1))
    nats, count = train.held_out_nats(engine, ids.flatten().numpy(), 12, 2, eos=0)
    assert count == 3 * (4 + 4 + 1) and nats == pytest.approx(alone, rel=1e-5)
    crossing, all_but_first = train.held_out_nats(engine, ids.flatten().numpy(), 12, 2)
    assert all_but_first == 3 * 11 and abs(crossing - nats) > 1


def test_isolated_documents_predict_nothing_across_their_border() -> None:
    ids = torch.tensor([[5, 6, 0, 7, 8, 0, 9]])
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 2]])
    assert train.labels_of(ids, documents).tolist() == [[5, 6, 0, -100, 8, 0, -100]]
    assert train.labels_of(ids, None) is ids
