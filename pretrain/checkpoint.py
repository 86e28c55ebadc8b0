"""Resumable checkpoints of a training stage: DeepSpeed's state, the number of steps, every RNG, and what the loop remembers.

    out/checkpoints/step-000050/                weights and optimizer state (DeepSpeed), rng-0.pt … one a process
    out/checkpoints/step-000050/NAME/           the same of another model that is trained beside it (GRPO: value, reward)
    out/checkpoints/step-000050/model/          the weights as transformers and vLLM open them (pre-training and SFT)
    out/checkpoints/step-000050/complete.json   written last: step, processes, size of every file, the loop's state
    out/checkpoints/universal/                  while a ZeRO checkpoint of another number of processes is being read

A folder without `complete.json`, or with a file of another size, is no checkpoint, so a process may be killed at any moment. The
folder goes when the manifest stands (stage.py; the result is `model/`).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from mathpipe.pipeline import artifact, log
from mathpipe.pretrain.optim import barrier, rank, world_size

FOLDER = artifact.CHECKPOINTS
COMPLETE = "complete.json"
UNIVERSAL = "universal"
BYTES_PER_PARAMETER = 16
"""Of a checkpoint, at most: bf16 weights, fp32 master weights and two moments."""


def rng_state() -> dict[str, Any]:
    """State of every random number generator of this process."""
    state = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore `rng_state()`."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def save(
    engine: Any, out: Path, step: int, keep: int = 1, state: Any = None, write_model: Callable[[Path], None] | None = None,
    further: Mapping[str, Any] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Write a checkpoint after `step` optimizer steps; every process calls it. Once it is whole, all but `keep` go.

    Args:
        state: what the loop has to remember, JSON-serialisable.
        write_model: writes the model that transformers and vLLM open into the checkpoint's folder; every process calls it.
        further: engines of other models that are trained beside it, by name.

    Raises:
        OSError: the disk is full; the checkpoints before stay.
    """
    folder = out / FOLDER
    path = folder / f"step-{step:06d}"
    if rank() == 0:
        shutil.rmtree(path, ignore_errors=True)  # half of one from a process that was killed, perhaps with other numbers of processes
        folder.mkdir(parents=True, exist_ok=True)
        _require_space(folder, [engine, *further.values()])
    barrier()
    with _full_disk_is_oserror(folder):
        engine.save_checkpoint(str(folder), tag=path.name, save_latest=False)
        for name, other in further.items():
            other.save_checkpoint(str(path), tag=name, save_latest=False)
        torch.save(rng_state(), path / f"rng-{rank()}.pt")
        if write_model is not None:
            write_model(path)
    barrier()
    if rank() == 0:
        files = sorted(file for file in path.rglob("*") if file.is_file())
        for file in files:
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        sizes = {str(file.relative_to(path)): file.stat().st_size for file in files}
        artifact.write_json(path / COMPLETE, {"step": step, "processes": world_size(), "state": state, "files": sizes})
        for old in sorted(folder.glob("step-*"))[:-keep]:
            _remove(old)
    barrier()


def load(engine: Any, out: Path, further: Mapping[str, Any] = MappingProxyType({})) -> tuple[int, Any]:
    """(steps done, the loop's state) of the newest whole checkpoint, which is restored into the engines; (0, None) when there is none.

    Written by another number of processes, a ZeRO checkpoint goes through DeepSpeed's universal form; random number generators
    are then those of a fresh start, on which the order of the data does not depend.

    Raises:
        ContractError: several engines whose ZeRO checkpoints another number of processes wrote.
    """
    folder = out / FOLDER
    found = next((made for path in sorted(folder.glob("step-*"), reverse=True) if (made := _read(path)) is not None), None)
    if found is None:
        return 0, None
    path, made = folder / f"step-{found['step']:06d}", found
    same_processes = made["processes"] == world_size()
    if further and not same_processes and engine.zero_optimization():
        found_wanted = f"{made['processes']} processes wrote it, {world_size()} read it"
        raise artifact.ContractError(f"{path}: with several models under ZeRO their number must stay ({found_wanted})")
    for name, other in further.items():
        other.load_checkpoint(str(path), tag=name)
    if same_processes:
        engine.load_checkpoint(str(folder), tag=path.name)
        set_rng_state(torch.load(path / f"rng-{rank()}.pt", weights_only=False))
    elif not engine.zero_optimization():
        engine.load_checkpoint(str(folder), tag=path.name)
    else:
        _load_universal(engine, path)
    if rank() == 0:
        log.logger().info("continuing after step %d (%s, written by %d processes)", made["step"], path, made["processes"])
    return made["step"], made["state"]


def _read(path: Path) -> dict[str, Any] | None:
    """`complete.json` of a whole checkpoint; None when something is missing or of another size."""
    try:
        made = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        wrong = [name for name, size in made["files"].items() if (path / name).stat().st_size != size]
    except FileNotFoundError as error:
        wrong, made = [str(error.filename)], None
    if not wrong:
        return made
    log.logger().warning("%s is not whole (%s): passed over", path, wrong[0])
    return None


def _remove(path: Path) -> None:
    (path / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(path)


def _require_space(folder: Path, engines: Sequence[Any]) -> None:
    """Raise OSError (ENOSPC) unless a checkpoint fits."""
    parameters = sum(getattr(p, "ds_numel", p.numel()) for engine in engines for p in engine.module.parameters())
    if shutil.disk_usage(folder).free < parameters * BYTES_PER_PARAMETER:
        raise OSError(errno.ENOSPC, f"a checkpoint takes up to {parameters * BYTES_PER_PARAMETER / 1e9:.1f} GB", str(folder))


@contextlib.contextmanager
def _full_disk_is_oserror(folder: Path) -> Iterator[None]:
    """torch.save tells of a full disk by a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if shutil.disk_usage(folder).free < 1 << 20:
            raise OSError(errno.ENOSPC, "the disk is full", str(folder)) from error
        raise


def _load_universal(engine: Any, path: Path) -> None:
    """Restore a ZeRO checkpoint that another number of processes wrote."""
    from deepspeed.checkpoint import ds_to_universal

    universal = path.parent / UNIVERSAL
    if rank() == 0:
        shutil.rmtree(universal, ignore_errors=True)
        ds_to_universal.main(argparse.Namespace(
            input_folder=str(path), output_folder=str(universal), num_extract_workers=1, num_merge_workers=1, keep_temp_folder=False,
            strict=True, inject_missing_state=True,
        ))  # fmt: skip
    barrier()
    optimizer = engine.basic_optimizer
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    engine._config.load_universal_checkpoint = True
    engine.load_checkpoint(str(path.parent), tag=UNIVERSAL)
    engine._config.load_universal_checkpoint = False
    # at stage 3 DeepSpeed 0.19 gives all groups the first one's decay, and all states one step counter, which each then advances
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for values in optimizer.state.values():
        if isinstance(values.get("step"), torch.Tensor):
            values["step"] = values["step"].clone()
    barrier()
    if rank() == 0:
        shutil.rmtree(universal)
        (path.parent / "latest_universal").unlink()
