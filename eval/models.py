"""The models of the chain: where pre-training started, what it made, SFT, and GRPO after each iteration."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathpipe.eval.config import EvaluateInputs
from mathpipe.pipeline.artifact import ContractError, read_manifest

WEIGHTS = ("*.safetensors", "*.json", "*.model", "*.bin")
"""Files of a model folder."""


@dataclass(frozen=True)
class Model:
    """One model to evaluate."""

    name: str
    """`start`, `base`, `sft`, `grpo.1` … after iterations, `grpo`."""
    path: Path
    chat: bool
    """Whether it was taught to chat: SFT and what follows."""
    made_by: str
    """Hash of the artifact that holds it; empty for the start model."""

    def identity(self) -> list[Any]:
        """What tells its answers from another's: the artifact, and names, sizes and times of the files (a folder may be made again)."""
        files = sorted(file for pattern in WEIGHTS for file in self.path.glob(pattern))
        return [self.made_by, self.path.name, *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]


def chain(inputs: EvaluateInputs) -> list[Model]:
    """The models in the order in which they were made.

    Raises:
        ContractError: one is not there.
    """
    hashes = {name: read_manifest(getattr(inputs, name))["hash"] for name in ("pretrain", "sft", "grpo")}
    found = [Model("start", path, False, "") for path in start_of(inputs.pretrain)]
    found += [Model("base", inputs.pretrain / "model", False, hashes["pretrain"]), Model("sft", inputs.sft / "model", True, hashes["sft"])]
    numbers = sorted(int(folder.name) for folder in (inputs.grpo / "iterations").glob("[0-9]*"))
    found += [Model(f"grpo.{n}", inputs.grpo / "iterations" / str(n) / "model", True, hashes["grpo"]) for n in numbers]
    found.append(Model("grpo", inputs.grpo / "model", True, hashes["grpo"]))
    for model in found:
        require(model.path)
    return found


def require(path: Path) -> None:
    """Raise ContractError where the folder holds no model."""
    if not (path / "config.json").is_file():
        raise ContractError(f"{path}: no model there (config.json is missing); run the stage that makes it again")


def start_of(pretrain: Path) -> list[Path]:
    """Folder of the model that pre-training started from, fetched where it is named by its place on the hub; empty: from scratch."""
    file = pretrain / "config.toml"
    start = tomllib.loads(file.read_text(encoding="utf-8")).get("pretrain", {}).get("start", "") if file.exists() else ""
    if not start or Path(start).is_dir():
        return [Path(start)] if start else []
    from huggingface_hub import snapshot_download

    return [Path(snapshot_download(start, allow_patterns=list(WEIGHTS)))]


def comparisons(models: list[Model]) -> list[tuple[str, str]]:
    """(before, after): each model with the one before it, and the last with SFT's.

    >>> comparisons([Model(name, Path(), False, "") for name in ("base", "sft", "grpo.1", "grpo")])
    [('base', 'sft'), ('sft', 'grpo.1'), ('grpo.1', 'grpo'), ('sft', 'grpo')]
    """
    names = [model.name for model in models]
    pairs = list(zip(names, names[1:], strict=False))
    return pairs if ("sft", "grpo") in pairs else [*pairs, ("sft", "grpo")]
