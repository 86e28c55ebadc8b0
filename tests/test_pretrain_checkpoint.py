"""Checkpoints: killed at any moment and continued to the bit, on other numbers of processes, never half of one, on a full disk."""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from test_pretrain_engine import difference, losses, run_groups

from mathpipe.pipeline import artifact
from mathpipe.pretrain import checkpoint, model

LAYOUTS = {"0x1": (0, 1), "2x2": (2, 2)}
"""Name → ZeRO stage, processes."""
KILLS = 2
ELASTIC = ((0, 2, 1), (2, 2, 1), (2, 1, 2), (3, 2, 1))
"""ZeRO stage, processes before and after."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Undisturbed runs, runs killed around random checkpoints (while one is written, or soon after), runs on changing processes."""
    base, rng = tmp_path_factory.mktemp("checkpoints"), random.Random(5)
    groups: list[dict[str, Any]] = []

    def group(name: str, stage: int, processes: int, **more: Any) -> None:
        kill = {key: more.pop(key) for key in ("kill_when", "kill_after_s") if key in more}
        run = {"out": str(base / name), "zero_stage": stage, "checkpoint_every": 3, "keep_checkpoints": 2, "spike_factor": 3.0, **more}
        groups.append({"processes": processes, "runs": [run], **kill})

    for name, (stage, processes) in LAYOUTS.items():
        group(f"full-{name}", stage, processes)
        for number in sorted(rng.sample(range(3, 19, 3), KILLS)):
            place = base / f"killed-{name}" / "checkpoints" / f"step-{number:06d}"
            group(f"killed-{name}", stage, processes, kill_when=str(place), kill_after_s=rng.uniform(0, 0.04))
        group(f"killed-{name}", stage, processes)
    for stage, before, after in ELASTIC:
        group(f"elastic-{stage}-{before}-{after}", stage, before, die_at=11)
        group(f"elastic-{stage}-{before}-{after}", stage, after)
    return base, run_groups(groups)


@pytest.mark.parametrize("name", LAYOUTS)
def test_killed_at_random_moments_it_ends_to_the_bit_as_undisturbed(runs: tuple[Path, list[str]], name: str) -> None:
    base, ended = runs
    start = list(LAYOUTS).index(name) * (KILLS + 2)
    assert ended[start : start + KILLS + 2] == ["done", *["killed"] * KILLS, "done"]
    full, killed = base / f"full-{name}", base / f"killed-{name}"
    assert losses(killed) == losses(full) and len(losses(full)) == 20
    assert difference(full, killed) == 0


@pytest.mark.parametrize("case", ELASTIC)
def test_on_another_number_of_processes_it_goes_on_as_before(runs: tuple[Path, list[str]], case: tuple[int, int, int]) -> None:
    base, ended = runs
    assert ended[len(LAYOUTS) * (KILLS + 2) :] == ["killed", "done"] * len(ELASTIC)
    out = base / "elastic-{}-{}-{}".format(*case)
    full, elastic = losses(base / "full-0x1"), losses(out)
    assert len(elastic) == 20 and max(abs(a - b) for a, b in zip(full, elastic, strict=True)) < 1e-3
    assert difference(base / "full-0x1", out) < 1e-4
    assert not list((out / "checkpoints").glob("*universal*"))


class Engine:
    """What checkpoint.py needs of DeepSpeed's engine: one number as state."""

    def __init__(self, value: float = 0.0) -> None:
        self.module, self.value, self.error = torch.nn.Linear(4, 4), value, None

    def zero_optimization(self) -> bool:
        return False

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        (Path(folder) / tag).mkdir()
        if self.error:
            raise self.error
        torch.save(self.value, Path(folder) / tag / "state.pt")

    def load_checkpoint(self, folder: str, tag: str) -> None:
        self.value = torch.load(Path(folder) / tag / "state.pt")


def saved(out: Path, keep: int = 2, steps: tuple[int, ...] = (10, 20, 30)) -> None:
    for step in steps:
        checkpoint.save(Engine(step), out, step, keep, {"losses": [step / 7]})


def found(out: Path) -> tuple[int, Any, float]:
    engine = Engine()
    step, state = checkpoint.load(engine, out)
    return step, state, engine.value


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / checkpoint.FOLDER).iterdir())


def test_the_newest_is_taken_and_old_ones_go(tmp_path: Path) -> None:
    assert found(tmp_path) == (0, None, 0.0)
    saved(tmp_path)
    assert names(tmp_path) == ["step-000020", "step-000030"]
    assert found(tmp_path) == (30, {"losses": [30 / 7]}, 30)


def test_random_numbers_go_on(tmp_path: Path) -> None:
    saved(tmp_path)
    expected = torch.rand(3), random.random()
    torch.manual_seed(7)
    random.seed(7)
    found(tmp_path)
    assert torch.equal(torch.rand(3), expected[0]) and random.random() == expected[1]


@pytest.mark.parametrize("damage", ["truncated", "no marker", "file gone", "half a marker"])
def test_half_a_checkpoint_is_none(tmp_path: Path, damage: str) -> None:
    saved(tmp_path)
    newest = tmp_path / checkpoint.FOLDER / "step-000030"
    if damage == "truncated":
        content = (newest / "state.pt").read_bytes()
        (newest / "state.pt").write_bytes(content[:-1])
    elif damage == "no marker":
        (newest / checkpoint.COMPLETE).unlink()
    elif damage == "file gone":
        (newest / "rng-0.pt").unlink()
    else:
        (newest / checkpoint.COMPLETE).rename(newest / f".{checkpoint.COMPLETE}.tmp")
    assert found(tmp_path) == (20, {"losses": [20 / 7]}, 20)
    saved(tmp_path, steps=(30,))
    assert found(tmp_path)[0] == 30


def test_what_another_layout_left_in_a_folder_is_not_mixed_in(tmp_path: Path) -> None:
    half = tmp_path / checkpoint.FOLDER / "step-000010"
    half.mkdir(parents=True)
    (half / "rng-1.pt").write_bytes(b"of a second process")
    saved(tmp_path, steps=(10,))
    assert set(json.loads((half / checkpoint.COMPLETE).read_text())["files"]) == {"rng-0.pt", "state.pt"}
    assert not (half / "rng-1.pt").exists()


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room is told before anything is written; torch's own error while writing is told as what it is."""
    saved(tmp_path)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(20 * checkpoint.BYTES_PER_PARAMETER - 1))
    with pytest.raises(OSError, match="a checkpoint takes") as caught:
        checkpoint.save(Engine(40), tmp_path, 40, 2)
    assert caught.value.errno == errno.ENOSPC and found(tmp_path)[0] == 30
    engine = Engine(40)
    engine.error = RuntimeError("PytorchStreamWriter failed writing file")
    sizes = iter([usage(10**9), usage(100)])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: next(sizes))
    with pytest.raises(OSError) as caught:
        checkpoint.save(engine, tmp_path, 40, 2)
    assert caught.value.errno == errno.ENOSPC and found(tmp_path)[0] == 30


@pytest.mark.parametrize(("words", "kind"), [("No space left on device (os error 28)", OSError), ("no such type", SafetensorError)])
def test_a_full_disk_under_a_model_is_told_as_such(tmp_path: Path, words: str, kind: type[Exception]) -> None:
    """safetensors has one error for everything; what it had begun it removes, so that the disk is no longer full then."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: {words}")

    with pytest.raises(kind, match=str(tmp_path) if kind is OSError else words):
        model.save(SimpleNamespace(save_pretrained=fail), None, tmp_path)


def test_a_torn_line_of_metrics_is_dropped(tmp_path: Path) -> None:
    artifact.append_metrics(tmp_path, step=1, loss=2.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert artifact.read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    artifact.truncate_metrics(tmp_path, 1)
    artifact.append_metrics(tmp_path, step=2, loss=1.0)
    assert [row["step"] for row in artifact.read_metrics(tmp_path)] == [1, 2]
