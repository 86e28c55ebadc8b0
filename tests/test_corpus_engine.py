"""Jobs on daft, natively and on Ray: dead workers, errors, the same bytes from both."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import engine_jobs
import psutil
import pytest
from corpus_artifacts import digests, needs_shared

from mathpipe.corpus import engine
from mathpipe.pipeline import artifact, log
from mathpipe.pipeline.config import ConfigError, Runtime


@pytest.fixture(autouse=True)
def workers_find_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_jobs_of_a_killed_worker_are_repeated(tmp_path: Path) -> None:
    jobs = [(number, tmp_path, 2 if number == 1 else 0) for number in range(4)]
    engine.run_jobs(engine_jobs.job, jobs, Runtime(), tmp_path, done=3)
    assert sorted(file.read_text(encoding="utf-8") for file in tmp_path.glob("*.done")) == ["0", "1", "2", "3"]
    assert (tmp_path / "1.begun").stat().st_size == 3
    progress = log.read_progress(tmp_path)
    assert progress is not None and (progress["done"], progress["total"]) == (7, 7)
    assert not (tmp_path / ".attempts").exists()


def test_a_job_that_kills_every_worker_ends_the_stage_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(engine.WorkerDied, match=r"job\(7, .*each of 4 workers died in it"):
        engine.run_jobs(engine_jobs.job, [(7, tmp_path, 99)], Runtime(), tmp_path)
    assert (tmp_path / "7.begun").stat().st_size == 1 + engine.MAX_REPEATS


def test_an_error_of_the_input_ends_the_stage_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^page.warc: broken$"):
        engine.run_jobs(engine_jobs.job, [(0, tmp_path, 0, "page.warc: broken")], Runtime(), tmp_path)


def test_a_bug_in_a_job_is_shown_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"engine_jobs.py(.|\n)*KeyError: 'bug'"):
        engine.run_jobs(engine_jobs.job, [(0, tmp_path, 0, "bug")], Runtime(), tmp_path)
    assert (tmp_path / "0.begun").stat().st_size == 1


def test_no_job_starts_no_worker(tmp_path: Path) -> None:
    engine.run_jobs(engine_jobs.job, [], Runtime(), tmp_path)
    assert not (tmp_path / ".attempts").exists()


def test_a_node_that_does_not_see_the_artifact_says_so(tmp_path: Path) -> None:
    _, _, error = pickle.loads(engine.run_task(engine_jobs.job, tmp_path / "elsewhere", pickle.dumps((0, (0, tmp_path)))))
    assert isinstance(error, ValueError) and "put runs/ on a file system that all nodes share" in str(error)


def test_cluster_is_checked_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="native, local, ray://host:port or host:port, found 'locl'"):
        Runtime(cluster="locl")


@needs_shared
@pytest.mark.parametrize("cluster", ["native", pytest.param("local", marks=pytest.mark.slow)])
def test_a_worker_killed_in_an_archive_changes_no_byte(cluster: str, small_crawl: Path, small_pages: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(f'[runtime]\nnum_workers = 2\ncluster = "{cluster}"\n[pages]\n')
    out = tmp_path / "out"
    inputs = ["--in", f"crawl={small_crawl}", "--out", str(out)]
    command = [sys.executable, "-m", "mathpipe.corpus.pages", "--config", str(tmp_path / "c.toml"), *inputs]
    stage = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    killed = kill_worker_that_writes(out / "extracted" / ".00001.parquet.tmp")
    assert killed and not (out / "extracted" / "00001.parquet").exists(), "in the middle of its job"
    output = stage.communicate(timeout=120)[0]
    assert stage.returncode == 0 and artifact.is_complete(out), output
    assert digests(out, "data", "rejects", "labels") == digests(small_pages, "data", "rejects", "labels")


def kill_worker_that_writes(file: Path, timeout_s: float = 90) -> bool:
    """kill -9 the process that has `file` open, as soon as there is one."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if file.exists():
            for process in psutil.process_iter():
                try:
                    if any(opened.path == str(file) for opened in process.open_files()):
                        os.kill(process.pid, signal.SIGKILL)
                        return True
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
        time.sleep(0.01)
    return False
