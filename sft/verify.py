"""Are the programs of PoT and TIR examples right? They are run (program_server.py: limits, not a sandbox) and looked at.

A PoT program must print the answer, or, where the set states none, anything: then what its last line prints is the answer. What
each program of a TIR example prints must be the output that stands below it; a longer print than was recorded is fine (recorded
outputs are cut), and so are numbers that agree to 4 digits. Whether the final text draws the right conclusion is not checked.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from mathpipe.sft.schema import Example

Result = tuple[str, str | None]
"""What a program printed, and its error or None."""
OK, ERROR, TIMEOUT, WRONG, NOTHING = "ok", "error", "timeout or out of memory", "wrong output", "nothing printed"
NUMBER = re.compile(r"[+-]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
REL_TOLERANCE = 1e-4
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}


class ProgramServer:
    """One process that runs programs, started on use and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self.network = False

    def run(self, programs: Sequence[str], timeout_s: float) -> list[Result] | None:
        """Results of programs that share a namespace, or None when they were ended."""
        process = self._process or self._start()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps({"programs": list(programs), "timeout_s": timeout_s}) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:  # a program got at the server itself
            self.close()
            return None
        found = json.loads(answer)
        return found and [(printed, error) for printed, error in found]

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mathpipe.sft.program_server"]
        paths = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT | paths)
        assert self._process.stdout
        ready = self._process.stdout.readline()
        if not ready:
            raise RuntimeError(f"the program server does not start; try it by hand: {' '.join(command)}")
        self.network = json.loads(ready)["network"]
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class Verifier:
    """Verifies examples with a few program servers side by side; results come in order."""

    def __init__(self, num_workers: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._servers: list[ProgramServer] = []
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(num_workers, initializer=self._begin)

    def _begin(self) -> None:
        self._local.server = ProgramServer()
        self._servers.append(self._local.server)

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown(cancel_futures=True)
        for server in self._servers:
            server.close()

    @property
    def network(self) -> bool:
        """Whether programs could have reached the network."""
        return any(server.network for server in self._servers)

    def verify(self, examples: Iterable[Example]) -> Iterator[tuple[Example, str, str]]:
        """(example, verdict, detail): verdict OK or a reason, "" for examples without programs; detail is what was found."""
        return self._pool.map(self._one, examples)

    def _one(self, example: Example) -> tuple[Example, str, str]:
        programs = example.of_kind("code")
        return judge(example, self._local.server.run(programs, self.timeout_s)) if programs else (example, "", "")


def judge(example: Example, results: Sequence[Result] | None) -> tuple[Example, str, str]:
    """(example with its answer filled in, verdict, detail) from what its programs gave."""
    if results is None:
        return example, TIMEOUT, ""
    if example.format == "pot":
        printed, error = results[0]
        if error:
            return example, ERROR, error
        if not printed:
            return example, NOTHING, ""
        last = printed.splitlines()[-1].strip()
        if not example.answer:
            return replace(example, answer=last), OK, ""
        return (example, OK, "") if same(last, example.answer) else (example, WRONG, printed)
    for (printed, error), recorded in zip(results, example.of_kind("output"), strict=True):
        kind = error.partition(":")[0] if error else ""
        if error and kind not in recorded:
            return example, ERROR, error
        if not error and not starts_with(printed, recorded):
            return example, WRONG, printed
    return example, OK, ""


def same(printed: str, answer: str) -> bool:
    """Whether two answers are the same text or numbers.

    >>> same("21.0000000000000", "21"), same("1,200", "$1200"), same("7", "8")
    (True, True, False)
    """
    one, other = (" ".join(text.replace("$", " ").split()) for text in (printed, answer))
    return one == other or (_shape(one) == _shape(other) and _close(one, other))


def starts_with(printed: str, recorded: str) -> bool:
    """Whether what was recorded, or its beginning before a "...", is how what was printed begins: the same words, numbers to 4 digits.

    >>> starts_with("x = 0.33333333333\\ndone", "x = 0.33333334"), starts_with("10", "1"), starts_with("", "4")
    (True, False, False)
    """
    words, wanted = printed.split(), recorded.split()
    if recorded.endswith("...") and " ".join(words).startswith(" ".join(wanted)[:-3].rstrip()):
        return True
    return bool(wanted or not words) and len(words) >= len(wanted) and same(" ".join(words[: len(wanted)]), " ".join(wanted))


def _shape(text: str) -> str:
    return NUMBER.sub("#", text)


def _close(one: str, other: str) -> bool:
    pairs = itertools.zip_longest(*([float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (one, other)))
    return all(abs(a - b) <= REL_TOLERANCE * max(abs(a), abs(b)) for a, b in pairs)
