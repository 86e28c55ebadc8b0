"""The pieces below a run: supervisor, environment, diagnosis, Luigi tasks, a full disk, benchmarks, curves."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import toy_chain

from mathpipe.pipeline import artifact, bench, launch, log, plan, stage, stages, supervise
from mathpipe.pipeline.config import ConfigError, Runtime

SPAWNER = """
import os, subprocess, sys
held = bytearray(50 << 20)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
open("child", "w").write(str(child.pid))
x = 0
for i in range(20_000_000): x += i
os._exit(3)
"""


@pytest.fixture
def toy_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "STAGES", toy_chain.STAGES)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    (tmp_path / "toy.toml").write_text("[top]\n", encoding="utf-8")
    return lambda *overrides: plan.make_plan(tmp_path / "runs", None, tmp_path / "toy.toml", overrides)


def supervised(tmp_path, parent, script):
    words = [supervise.__file__, str(parent), str(tmp_path / "usage.json"), sys.executable, "-c", script]
    return subprocess.run([sys.executable, "-I", "-S", *words], cwd=tmp_path, timeout=60)


def test_the_supervisor_ends_what_the_command_left_and_passes_its_exit_code_on(tmp_path):
    done = supervised(tmp_path, os.getpid(), SPAWNER)
    assert done.returncode == 3
    assert not psutil.pid_exists(int((tmp_path / "child").read_text()))
    usage = json.loads((tmp_path / "usage.json").read_text())
    assert usage["cpu_s"] > 0.2 and 50 << 20 < usage["peak_memory_bytes"] < 150 << 20


def test_the_seconds_of_a_broken_attempt_are_counted_by_the_next(tmp_path, monkeypatch):
    script = "import time; end = time.time() + 0.7\nwhile time.time() < end: pass"
    usages = []
    for _ in range(3):
        supervised(tmp_path, os.getpid(), script)
        usages.append(json.loads((tmp_path / "usage.json").read_text()))
    for name in ("wall", "cpu"):
        assert usages[2][f"{name}_before_s"] == pytest.approx(usages[0][f"{name}_s"] + usages[1][f"{name}_s"])
    assert usages[2]["wall_before_s"] > 1.4 and usages[2]["cpu_before_s"] > 0
    (tmp_path / "usage.json").write_text(
        json.dumps({"started": time.time() - 5, "wall_before_s": 100, "cpu_before_s": 200, "cpu_s": 7, "peak_memory_bytes": 8 << 40})
    )
    monkeypatch.setenv("MATHPIPE_USAGE", str(tmp_path / "usage.json"))
    found = stage._usage(time.time(), stage._cpu_seconds())
    assert found["wall_s"] == pytest.approx(105, abs=1) and found["cpu_s"] == 207 and found["peak_memory_bytes"] == 8 << 40


def test_the_supervisor_does_not_go_on_without_its_caller(tmp_path):
    began = time.monotonic()
    assert supervised(tmp_path, 1, "import time; time.sleep(60)").returncode == 137
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("code", "tail", "found"),
    [
        (2, ["reading", "error: a.warc: not a WARC file"], (2, "a.warc: not a WARC file")),
        (1, ["Traceback (most recent call last):", "  File x", "KeyError: 'k'", ""], (1, "KeyError: 'k'")),
        (1, ["torch.OutOfMemoryError: CUDA out of memory", "[W] shutting down"], (1, "torch.OutOfMemoryError: CUDA out of memory")),
        (0, ["fine"], (1, "the stage ended without an artifact")),
        (137, ["step 3"], (137, "ended by signal 9 SIGKILL (the system may have run out of memory)")),
        (139, ["Fatal Python error: Segmentation fault"], (139, "ended by signal 11 SIGSEGV")),
        (5, [], (5, "exit code 5, no output")),
        (75, ["step 3", "waiting: 3 questions wait for people"], (75, "3 questions wait for people")),
        (1, ["error: lr is 0", "E1 torch/distributed/elastic/x.py:1] failed (exitcode: 2) local_rank: 0", "x.ChildFailedError: y"],
         (2, "lr is 0")),
        (1, ["step 1", "E1 torch/distributed/elastic/x.py:1] failed (exitcode: -9) local_rank: 1"],
         (137, "ended by signal 9 SIGKILL (the system may have run out of memory)")),
    ],
)  # fmt: skip
def test_diagnosis(code, tail, found):
    assert launch._diagnosis(code, tail) == found


def test_environment_of_a_stage(toy_plan, monkeypatch, tmp_path):
    steps = toy_plan().steps
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libiomp5.so").touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("LD_PRELOAD", "other.so")
    distributed = launch.environment(steps["aside"], Runtime(device="cpu", num_threads=3))
    assert distributed["LD_PRELOAD"] == f"{tmp_path}/lib/libiomp5.so other.so" and distributed["OMP_NUM_THREADS"] == "3"
    assert launch.environment(steps["top"], Runtime(device="cpu"))["LD_PRELOAD"] == "other.so"
    assert launch.environment(steps["aside"], Runtime(device="cuda"))["LD_PRELOAD"] == "other.so"


def test_the_command_is_what_a_person_would_type(toy_plan):
    steps = toy_plan().steps
    words = " ".join(launch.stage_command(steps["left"], Runtime()))
    top, left = steps["top"].out, steps["left"].out
    assert words == f"{sys.executable} -m toy_chain --stage left --config {left}/config.toml --in top={top} --out {left}"
    assert " -m torch.distributed.run --standalone --nproc-per-node 2 -m toy_chain " in " ".join(
        launch.stage_command(steps["aside"], Runtime(num_processes=2))
    )


def test_luigi_tasks_are_complete_by_manifest_alone_and_told_apart_by_recipe(toy_plan):
    from mathpipe.pipeline import tasks

    made, other = toy_plan(), toy_plan("left.value=7")
    run, changed = tasks.Run(made, None), tasks.Run(other, None)
    assert [type(task).__name__ for task in run.tasks.values()] == ["Top", "Left", "Right", "Bottom", "Aside"]
    assert tasks.class_name("round1.train") == "Round1Train"
    assert run.tasks["bottom"].requires() == [run.tasks["left"], run.tasks["right"]]
    out = made.steps["left"].out
    out.mkdir(parents=True)
    (out / "half-written.parquet").touch()
    assert not run.tasks["left"].complete()
    artifact.write_json(out / "manifest.json", {"stage": "left", "hash": made.steps["left"].hash})
    assert run.tasks["left"].complete() and not changed.tasks["left"].complete()
    assert run.tasks["left"].task_id != changed.tasks["left"].task_id


class Watcher:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda step, *_: self.calls.append((name, step.name))


def test_luigi_shows_the_page_of_a_stage_that_asks_people_and_leaves_it_pending(toy_plan, tmp_path, monkeypatch):
    from mathpipe.pipeline import tasks

    run, told = tasks.Run(toy_plan(), Watcher()), []
    task = run.tasks["top"]
    for name in ("set_tracking_url", "set_status_message", "set_progress_percentage"):
        monkeypatch.setattr(task, name, lambda value, name=name: told.append((name, value)), raising=False)

    def ask_people(step, runtime, on_progress, verbose):
        progress = log.Progress(tmp_path, 8, "hosts", "people decide", done=2)
        on_progress(progress.snapshot())
        progress.url, progress.message = "http://127.0.0.1:8765/", "5 decisions"
        on_progress(progress.snapshot())
        raise launch.StageWaits("top", "6 questions wait for people")

    monkeypatch.setattr(launch, "run_stage", ask_people)
    (awaited,) = task.run()
    assert isinstance(awaited, tasks.ForPeople) and not awaited.complete() and awaited.run is None, "external: neither run nor failed"
    assert told[1:] == [
        ("set_progress_percentage", 25), ("set_status_message", "people decide  2/8 hosts  25 %"),
        ("set_progress_percentage", 25), ("set_status_message", "people decide  2/8 hosts  25 %  http://127.0.0.1:8765/  5 decisions"),
        ("set_tracking_url", "http://127.0.0.1:8765/"), ("set_status_message", "waiting: 6 questions wait for people"),
    ]  # fmt: skip
    assert run.display.calls == [("started", "top"), ("progressed", "top"), ("progressed", "top"), ("waits", "top")]
    assert run.waiting.what == "6 questions wait for people" and run.failure is None


def test_a_full_disk_is_one_line_and_loses_nothing(toy_plan, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        command = [sys.executable, toy_chain.__file__, "run", "left", "--config", "toy.toml", "--runs", str(disk)]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
        with pytest.raises(OSError, match="No space"), (disk / "filler").open("wb", buffering=0) as file:
            for _ in range(1000):
                assert file.write(bytes(4096)) == 4096
        command += ["--set", "left.value=3"]
        full = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert full.returncode == 2 and "the disk is full" in full.stderr and full.stderr.count("\n") == 1, full.stderr
        (disk / "filler").unlink()
        assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_results_of_benchmarks_are_merged_and_a_broken_one_is_reported(tmp_path, monkeypatch, capsys):
    def broken():
        raise ValueError("no peer")

    rows = {"a.fast": lambda: bench.row("a.fast", 6.0, "pages/s", "twice", True, peer=2.0, peer_name="other"), "a.broken": broken}
    monkeypatch.setattr(bench, "find_benchmarks", lambda: rows)
    assert bench.main(tmp_path, None) == 1
    assert bench.main(tmp_path, "a.fast") == 0
    broken_row, fast = json.loads((tmp_path / "results.json").read_text())
    assert list(fast) == ["name", "ours", "peer", "peer_name", "ratio", "unit", "goal", "met", "command"]
    assert (fast["ratio"], fast["met"], fast["command"]) == (3.0, True, "make bench ONLY=a.fast")
    assert broken_row["met"] is False and "no peer" in broken_row["goal"] and "no peer" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="unknown benchmark 'a.fats'; did you mean 'a.fast'"):
        bench.main(tmp_path, "a.fats")


def test_curves_are_copied_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    from mathpipe.pipeline.ui import Curve

    source = tmp_path / "grpo-0123abcd"
    source.mkdir()
    curve = Curve(source, tmp_path / "curves")
    for step in (5, 10):
        artifact.append_metrics(source, step=step, reward=step / 10, note="text")
        curve.update()
    (file,) = (tmp_path / "curves" / "grpo-0123abcd").iterdir()
    events = [event for event in EventFileLoader(str(file)).Load() if event.step]
    assert [event.step for event in events] == [5, 10]
    assert [[value.tag for value in event.summary.value] for event in events] == [["reward"], ["reward"]]
