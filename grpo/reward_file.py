"""Rewards from a user's file, named `PATH.py:FUNCTION` in `grpo.rewards` (torch-free: their content enters the stage's hash).

    # rewards/short.py
    def reward(question: str, answer: str, completion: str) -> float:
        return 1.0 if len(completion) < 200 else 0.0

    [grpo.rewards]
    answer = 1.0
    "rewards/short.py:reward" = 0.2

The function gets the question, the reference answer and the model's text without special tokens, and returns a number, or None where
it can tell nothing: that sample then leaves its group's mean and has no advantage. It should return the same for the same arguments,
or a resumed run differs from an undisturbed one. A relative path starts where `mathpipe` is called.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

UserReward = Callable[[str, str, str], float]


def files(rewards: Iterable[str]) -> dict[str, str] | None:
    """Path → hash of the content of every file among the names of rewards, for a config's fingerprint; None without any.

    A missing file has the hash "": the plan can be made, and `require` refuses to run it.
    """
    paths = sorted({name.rpartition(":")[0] for name in rewards if ":" in name})
    found = {path: Path(path) for path in paths}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for name, path in found.items()} or None


def require(rewards: Iterable[str]) -> None:
    """Raise ValueError where the file of a reward is missing."""
    for name in (name for name in rewards if ":" in name):
        path = Path(name.rpartition(":")[0])
        if not path.is_file():
            raise ValueError(f"grpo.rewards {name!r}: no file {path.absolute()}; write PATH.py:FUNCTION")


def load(name: str) -> UserReward:
    """The function of `PATH.py:FUNCTION`, checked at every call.

    Raises:
        ValueError: no such file or function, or the file cannot be run.
    """
    require([name])
    path, _, function = name.rpartition(":")
    spec = importlib.util.spec_from_file_location(f"user_reward_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"grpo.rewards {name!r}: {path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    _run(f"{path}: cannot be imported", spec.loader.exec_module, module)
    found = getattr(module, function, None)
    if not callable(found):
        there = ", ".join(sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))) or "none"
        raise ValueError(f"grpo.rewards {name!r}: no function {function!r} in {path} (there are: {there})")

    def reward(question: str, answer: str, completion: str) -> float:
        value = _run(f"{path}:{function} failed on the completion {completion[:80]!r}", found, question, answer, completion)
        if value is None:
            return math.nan
        if not isinstance(value, int | float) or math.isinf(value):
            raise ValueError(f"{path}:{function} returned {value!r} for the completion {completion[:80]!r}; return a finite number or None")
        return float(value)

    return reward


def _run(where: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """What the call returns; whatever a user's code raises becomes one line."""
    try:
        return call(*arguments)
    except Exception as error:
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
