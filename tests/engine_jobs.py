"""Jobs for tests of the engine: they leave a mark when they begin and write a file when they end."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def job(number: int, folder: Path, num_deaths: int = 0, error: str = "") -> str:
    with (folder / f"{number}.begun").open("a+b") as file:
        file.write(b".")
        times = file.tell()
    if times <= num_deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    if error:
        raise KeyError(error) if error == "bug" else ValueError(error)
    (folder / f"{number}.done").write_text(str(number), encoding="utf-8")
    return f"job {number}"
