"""Mixtures of token sources: exact shares, epochs, phases, any number of processes, documents apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mathpipe.pipeline import artifact
from mathpipe.pipeline.artifact import ContractError
from mathpipe.pretrain import mixture, tokens
from mathpipe.pretrain.config import Phase, PretrainConfig
from mathpipe.pretrain.mixture import Mixture

CONTEXT = 8
SOURCES = {"math": 0, "code": 1000, "general": 2000}
"""Source → its first token; token i of a source is first + i, so that a window says where it comes from."""
PHASES = (Phase(0.5, {"code": 1.0}), Phase(0.5, {"math": 3.0, "code": 1.0}))


def write_split(folder: Path, source: str, split: str, shards: list[np.ndarray]) -> None:
    (folder / split / source).mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards):
        shard.astype("<u2").tofile(folder / split / source / f"{number:05d}.bin")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten windows and a rest of each source, in three shards; the EOS is token 9."""
    facts: dict[str, dict[str, dict[str, int]]] = {}
    for source, first in SOURCES.items():
        flat = np.arange(first, first + 10 * CONTEXT + 3)
        write_split(tmp_path, source, "train", [flat[:5], flat[5:50], flat[50:]])
        held_out = [] if source == "general" else [np.arange(6)]
        write_split(tmp_path, source, "held_out", held_out)
        sizes = {"train": len(flat), "held_out": 6 * len(held_out)}
        facts[source] = {split: {"num_documents": 1, "num_tokens": n, "num_bytes": 4 * n} for split, n in sizes.items()}
    artifact.write_json(tmp_path / "manifest.json", {"stage": "tokens", "hash": "0" * 8, "dtype": "<u2", "eos": 9, "sources": facts})
    return tmp_path


def config(phases: tuple[Phase, ...] = PHASES, num_steps: int = 8, windows: int = 4, **more: object) -> PretrainConfig:
    per_step = CONTEXT * windows
    return PretrainConfig(context=CONTEXT, batch_tokens=per_step, total_tokens=per_step * num_steps, phases=phases, **more)  # type: ignore[arg-type]


def steps(mix: Mixture) -> torch.Tensor:
    return torch.cat([mix.batch(step).ids_BT for step in range(mix.config.num_steps)])


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_every_source_is_within_one_window_of_its_share_after_every_step(data: st.DataObject) -> None:
    num_sources, num_phases = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    weight = st.one_of(st.just(0.0), st.floats(1e-3, 10.0), st.integers(1, 5).map(float))
    rows = st.lists(weight, min_size=num_sources, max_size=num_sources).filter(any)
    weights = np.array(data.draw(st.lists(rows, min_size=num_phases, max_size=num_phases)))
    parts = np.array(data.draw(st.lists(st.integers(1, 9), min_size=num_phases, max_size=num_phases)))
    num_steps, per_step = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 7))
    taken = mixture.schedule(list(parts / parts.sum()), weights, num_steps, per_step)
    target, share = np.zeros(num_sources), weights / weights.sum(1, keepdims=True)
    phase_of = np.repeat(np.arange(num_phases), parts * num_steps * per_step)  # each window in parts.sum() equal slices
    for step in range(num_steps + 1):
        done = phase_of[: step * per_step * parts.sum()]
        target = sum(np.sum(done == p) / parts.sum() * share[p] for p in range(num_phases))
        assert taken[step].sum() == step * per_step
        assert (np.abs(taken[step] - target) < 1).all()
    assert (np.diff(taken, axis=0) >= 0).all()


def test_largest_share_first_would_fall_a_window_behind() -> None:
    """Three small sources that come due together beside a large one: all are served in time, at one window a step."""
    weights = np.array([[0.01, 0.33, 0.33, 0.33]])
    taken = mixture.schedule([1.0], weights, 100, 1)
    assert taken[3].tolist() == [0, 1, 1, 1] and taken[100].tolist() == [1, 33, 33, 33]


@given(st.integers(1, 3000), st.text(max_size=5))
@settings(max_examples=60, deadline=None)
def test_an_epoch_visits_every_window_once(count: int, key: str) -> None:
    order = mixture.permuted(np.arange(count), count, key)
    assert sorted(order.tolist()) == list(range(count))
    assert (mixture.permuted(np.arange(count)[::-1], count, key) == order[::-1]).all(), "each place on its own"


def test_an_epoch_is_shuffled() -> None:
    """As a random permutation: place and window do not correlate, and neighbours do not stay neighbours."""
    count = 5000
    orders = [mixture.permuted(np.arange(count), count, key) for key in ("a", "b")]
    assert abs(np.corrcoef(*orders)[0, 1]) < 0.05
    for order in orders:
        assert abs(np.corrcoef(np.arange(count), order)[0, 1]) < 0.05
        assert np.sum(np.abs(np.diff(order)) == 1) < 20
        assert 300 < np.abs(np.bincount(order[: count // 2] * 10 // count, minlength=10)).min() * 1.5 < 500


def test_a_source_goes_on_where_the_phase_before_left_off(folder: Path) -> None:
    """16 steps of 2 windows: 16 of code, then 12 of math and 4 of code; 20 windows of code are two epochs of ten."""
    mix = Mixture(folder, config(num_steps=16, windows=2))
    starts = [int(start) for start in steps(mix)[:, 0]]
    code, math = [s - 1000 for s in starts if s >= 1000], [s for s in starts if s < 1000]
    assert starts[:16] == [s + 1000 for s in code[:16]] and not any(s >= 2000 for s in starts)
    assert sorted(code[:10]) == sorted(code[10:]) == [8 * i for i in range(10)] and code[:10] != code[10:]
    assert sorted(np.bincount(math)[::8]) == [1] * 8 + [2] * 2
    assert mix.epochs(8) == {"code": 1.6, "general": 0.0, "math": 0.0}
    assert mix.epochs(16) == {"code": 2.0, "general": 0.0, "math": 1.2}


def test_windows_are_consecutive_tokens_also_across_shards(folder: Path) -> None:
    rows = steps(Mixture(folder, config()))
    assert (rows == rows[:, :1] + torch.arange(CONTEXT)).all()
    flat = tokens.read(folder, "train", "math")
    assert len(flat) == 83 and flat[3:52].tolist() == list(range(3, 52)) and flat[83:90].tolist() == []


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_number_of_processes_sees_the_same_windows(folder: Path, world_size: int) -> None:
    mix, phase = config(), (Phase(1.0, {"math": 0.5, "code": 0.5}),)
    for settings_ in (mix, config(phase), config(phase, seed=1)):
        whole = Mixture(folder, settings_)
        ranks = [Mixture(folder, settings_) for _ in range(world_size)]  # as separate processes, from any step
        for step in (7, 0, 5):
            all_rows = whole.batch(step)
            for rank, one in enumerate(ranks):
                batch = one.batch(step, slice(rank, None, world_size))
                assert torch.equal(batch.ids_BT, all_rows.ids_BT[rank::world_size])
                assert (batch.source_B == all_rows.source_B[rank::world_size]).all()


def test_sources_are_named_and_shuffled_within_a_step(folder: Path) -> None:
    mix = Mixture(folder, config((Phase(1.0, {"math": 0.5, "code": 0.5}),), num_steps=1, windows=16))
    batch = mix.batch(0)
    assert mix.sources == ("code", "general", "math")
    assert [mix.sources[s] for s in batch.source_B] == ["math" if ids[0] < 1000 else "code" for ids in batch.ids_BT]
    assert len(set(batch.source_B[:8].tolist())) == 2 and batch.documents_BT is None
    assert not torch.equal(batch.ids_BT, Mixture(folder, config(mix.config.phases, 1, 16, seed=1)).batch(0).ids_BT)


def test_isolated_documents_end_with_their_eos(folder: Path) -> None:
    """The window 8 … 15 of math holds EOS (9) at its second place."""
    batch = Mixture(folder, config((Phase(1.0, {"math": 1.0}),), num_steps=1, windows=10, isolate=True)).batch(0)
    assert batch.documents_BT is not None and batch.documents_BT.dtype == torch.int64
    for ids, documents in zip(batch.ids_BT, batch.documents_BT, strict=True):
        assert documents.tolist() == ([0, 0, 1, 1, 1, 1, 1, 1] if ids[0] == 8 else [0] * 8)


def test_held_out_tokens(folder: Path) -> None:
    mix = Mixture(folder, config())
    assert mix.held_out("math").tolist() == list(range(6)) and mix.held_out_bytes_per_token("math") == 4
    assert len(mix.held_out("general")) == 0 and np.isnan(mix.held_out_bytes_per_token("general"))


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no source 'cod', which a phase names; did you mean 'code'\? \(there are: code, general, math\)"):
        Mixture(folder, config((Phase(1.0, {"math": 1.0, "cod": 0.1}),)))
    Mixture(folder, config((Phase(1.0, {"math": 1.0, "physics": 0.0}),)))  # a weight of 0 asks for nothing
    with pytest.raises(ValueError, match="83 training tokens of 'math', fewer than a window of 128"):
        Mixture(folder, PretrainConfig(context=128))
    facts = artifact.read_manifest(folder)
    for source in SOURCES:
        facts["sources"][source]["held_out"]["num_tokens"] = 0
    artifact.write_json(folder / "manifest.json", facts)
    with pytest.raises(ContractError, match="no held-out tokens; raise tokens.held_out_frac"):
        Mixture(folder, config())


def test_phases_are_checked_and_not_rewritten() -> None:
    assert PretrainConfig(phases=PHASES).phases[1].mix == {"math": 3.0, "code": 1.0}
    told = "; 50 % of the tokens: 100 % code, then 50 % of the tokens: 75 % math, 25 % code"
    assert PretrainConfig(phases=PHASES).describe().endswith(told)
    with pytest.raises(ValueError, match=r"must sum to 1, found \[0.5\]"):
        PretrainConfig(phases=(Phase(0.5, {"math": 1.0}),))
    with pytest.raises(ValueError, match="must sum to 1"):
        PretrainConfig(phases=())
    for mix in ({}, {"math": 0.0}, {"math": -1.0, "code": 2.0}, {"math": float("nan")}):
        with pytest.raises(ValueError, match="mix needs weights"):
            Phase(1.0, mix)
    with pytest.raises(ValueError, match="frac must lie above 0"):
        Phase(0.0, {"math": 1.0})
