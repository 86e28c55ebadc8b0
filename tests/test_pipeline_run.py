"""`mathpipe run` on the toy chain: what runs, what fails and how it says so, what a kill leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import toy_chain

from mathpipe.pipeline import artifact, cli, stage, stages

HERE = Path(__file__).parent


@pytest.fixture
def mathpipe(tmp_path, monkeypatch, capsys):
    """The command line on the toy chain, in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(stages, "STAGES", toy_chain.STAGES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    (tmp_path / "toy.toml").write_text("[top]\nvalue = 1\n", encoding="utf-8")
    before = signal.getsignal(signal.SIGTERM)

    def call(command, *words):
        code = 0
        try:
            cli.main([command, *words, "--config", "toy.toml"])
        except SystemExit as error:
            code = error.code or 0
        signal.signal(signal.SIGTERM, before)
        return code, *capsys.readouterr()

    return call


def manifests(root="runs/toy"):
    return {path.parent.name: path.stat().st_mtime_ns for path in Path(root).glob("*/manifest.json")}


def states(mathpipe, *words):
    code, out, _ = mathpipe("status", "--json", *words)
    assert code == 0
    return {row["stage"]: row["state"] for row in json.loads(out)}


def test_a_changed_value_reruns_that_stage_and_what_follows_and_overwrites_nothing(mathpipe):
    assert mathpipe("run", "bottom")[0] == 0
    first = manifests()
    assert sorted(name[:-9] for name in first) == ["bottom", "left", "right", "top"]

    code, out, _ = mathpipe("run", "bottom")
    assert code == 0 and "nothing to do" in out and manifests() == first

    code, out, _ = mathpipe("plan", "bottom", "--set", "left.value=5")
    assert "left.value 1 → 5" in out and "input changed: left" in out

    assert mathpipe("run", "bottom", "--set", "left.value=5")[0] == 0
    second = manifests()
    assert sorted(name[:-9] for name in second.keys() - first.keys()) == ["bottom", "left"]
    assert {name: second[name] for name in first} == first
    assert states(mathpipe, "--set", "left.value=5")["bottom"] == "done"
    assert states(mathpipe)["bottom"] == "done"
    assert states(mathpipe, "--set", "right.value=9") == {
        "top": "done", "left": "done", "right": "stale", "bottom": "stale", "aside": "missing",
    }  # fmt: skip


def test_runtime_is_outside_the_hash(mathpipe):
    assert mathpipe("run", "top")[0] == 0
    assert "nothing to do" in mathpipe("run", "top", "--set", "runtime.num_workers=7")[1]


def test_what_a_stage_reads_from_outside_is_in_the_hash(mathpipe, monkeypatch):
    assert mathpipe("run", "top")[0] == 0
    monkeypatch.setenv("TOY_OUTSIDE", "another version")
    assert states(mathpipe)["top"] == "stale"
    assert "what it reads from outside changed" in mathpipe("plan", "top")[1]


def test_rerun_makes_a_new_artifact_and_a_later_run_takes_it_as_current(mathpipe):
    assert mathpipe("run", "bottom")[0] == 0
    first = manifests()
    assert mathpipe("rerun", "left")[0] == 0
    second = manifests()
    assert sorted(name[:-9] for name in second.keys() - first.keys()) == ["bottom", "left"]
    assert {name: second[name] for name in first} == first
    assert "nothing to do" in mathpipe("run", "bottom")[1]
    assert mathpipe("rerun", "left", "--set", "left.value=2")[0] == 0  # not made yet: runs without a number
    assert json.loads(Path("runs/toy/attempts.json").read_text()).values() != {} and len(manifests()) == len(second) + 2
    assert list(json.loads(Path("runs/toy/attempts.json").read_text()).values()) == [1]


@pytest.mark.parametrize(
    ("mishap", "code", "cause"),
    [
        ("bad input", 2, "archive.warc: not a WARC file; give another"),
        ("full", 2, "/somewhere/file.bin: the disk is full"),
        ("forbidden", 2, "/somewhere/file.bin: no permission"),
        ("bug", 1, "KeyError: 'a bug of ours'"),
        ("killed", 1, "ended by signal 9 SIGKILL"),
        ("silent", 1, "the stage ended without an artifact"),
    ],
)
def test_a_failed_stage_is_named_with_cause_and_log_and_stops_the_run(mathpipe, mishap, code, cause):
    found, _, err = mathpipe("run", "bottom", "--set", f"left.mishap={mishap}")
    assert found == code
    lines = err.strip().splitlines()
    assert len(lines) == (1 if code == 2 else 3)
    assert "left" in lines[0] and cause in err
    log = re.search(r"runs/toy/left-\w{8}/log.txt", err).group()
    assert "wrote item 0" in Path(log).read_text()
    failure = json.loads(Path(log).with_name("failure.json").read_text())
    assert cause in failure["cause"] and failure["log"] == log
    assert states(mathpipe, "--set", f"left.mishap={mishap}") == {
        "top": "done", "left": "failed", "right": "missing", "bottom": "missing", "aside": "missing",
    }  # fmt: skip


def test_a_stage_that_waits_for_people_is_no_failure(mathpipe):
    words = ("--set", "left.mishap=waiting", "--set", "runtime.database=teams.sqlite")
    code, out, err = mathpipe("run", "bottom", *words)
    assert code == 0 and not err
    assert "waits for people" in out and out.splitlines()[-1] == (
        "left: 3 hosts wait for people: run `mathpipe annotate --config toy.toml --set runtime.database=teams.sqlite` "
        "(http://127.0.0.1:8765/), then the same command again"
    )
    found = {"top": "done", "left": "waiting", "right": "done", "bottom": "missing", "aside": "missing"}
    assert states(mathpipe, *words) == found, "what does not depend on people is done"
    assert "waiting: 3 hosts wait for people" in mathpipe("plan", "bottom", *words)[1]
    said = Path("runs/toy/luigi.log").read_text()
    assert "ERROR" not in said
    assert "looks :|" in said, "Luigi's word for something external that is missing"
    code, out, _ = mathpipe("run", "bottom", *words)
    assert code == 0 and "3 hosts wait for people" in out


def test_wait_is_a_value_of_runtime(mathpipe):
    assert mathpipe("run", "top", "--wait")[0] == 0
    (file,) = Path("runs/toy").glob("top-*/config.toml")
    assert "wait = true" in file.read_text()
    assert "nothing to do" in mathpipe("run", "top")[1], "outside the hash"


def test_torchrun_does_not_hide_exit_code_and_cause(mathpipe):
    code, _, err = mathpipe("run", "aside", "--set", "aside.mishap=bad input", "--set", "runtime.num_processes=2")
    assert code == 2 and err.startswith("error: aside: archive.warc: not a WARC file") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "--set", "top.valeu=2"], "error: toy.toml: [top]: unknown key 'valeu'; did you mean 'value'?"),
        (["run", "--set", "tpo.value=2"], "error: toy.toml: unknown section [tpo]; did you mean 'top'?"),
        (["run", "--set", "top.value=-2"], "error: toy.toml: [top]: value must be 0 or more, found -2"),
        (["run", "--set", "top.value=two"], "error: toy.toml: [top] value: expected int, found 'two'"),
        (["run", "--set", "value=2"], "error: --set 'value=2': expected section.key=value, for example grpo.group_size=16"),
        (["run", "botom"], "error: unknown stage 'botom'; did you mean 'bottom'? (stages: top, left, right, bottom, aside)"),
        (["rerun", "lift"], "error: unknown stage 'lift'; did you mean 'left'? (stages: top, left, right, bottom, aside)"),
        (["run", "--set", "runtime.num_processes=65"], "error: top: needs at most 64 processes, found 65"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(mathpipe, words, line):
    code, _, err = mathpipe(*words)
    assert (code, err) == (2, line + "\n")
    assert not Path("runs").exists()


def test_unknown_profile_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["plan", "--profile", "tyni"])
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown profile 'tyni'; did you mean 'tiny'?")


def test_a_torn_manifest_is_reported_not_used(mathpipe):
    assert mathpipe("run", "left")[0] == 0
    (torn,) = Path("runs/toy").glob("top-*/manifest.json")
    torn.write_text(torn.read_text()[:40])
    code, _, err = mathpipe("run", "left")
    assert code == 2 and err.count("\n") == 1 and str(torn) in err and "delete" in err


def test_plan_says_what_cannot_run_here_and_how_large_it_is(mathpipe):
    code, out, _ = mathpipe("plan", "--set", "runtime.num_processes=65")
    assert code == 0 and "cannot run here" in out and "3 items" in out and "5 of 5 stages would run" in out


def test_gc_removes_what_the_plan_does_not_refer_to(mathpipe):
    mathpipe("run", "left")
    mathpipe("run", "left", "--set", "left.value=2")
    old = {path.name for path in Path("runs/toy").glob("left-*")}
    code, out, _ = mathpipe("gc", "--set", "left.value=2")
    assert code == 0 and out.count("unused") == 1 and {path.name for path in Path("runs/toy").glob("left-*")} == old
    assert mathpipe("gc", "--yes", "--set", "left.value=2")[0] == 0
    assert states(mathpipe, "--set", "left.value=2")["left"] == "done" and len(list(Path("runs/toy").glob("left-*"))) == 1


def test_the_manifest_counts_memory_and_time_of_every_process(mathpipe):
    words = ("--set", "top.ballast_mb=200", "--set", "top.item_s=0.8")
    assert mathpipe("run", "top", *words)[0] == 0
    (file,) = Path("runs/toy").glob("top-*/manifest.json")
    manifest = json.loads(file.read_text())
    assert 200 << 20 < manifest["peak_memory_bytes"] < 400 << 20
    assert manifest["wall_s"] > 2.4
    assert " -m toy_chain --stage top " in manifest["command"]
    assert not [p for p in psutil.process_iter(["cmdline"]) if "(200 << 20)" in " ".join(p.info["cmdline"] or [])]


def start(tmp_path, *words):
    """`mathpipe run` on the toy chain as a process of its own."""
    command = [sys.executable, str(HERE / "toy_chain.py"), "run", *words, "--config", "toy.toml"]
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    return subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def alive(processes):
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


SLOW = ("--set", "top.item_s=0.4", "--set", "top.num_items=6", "--set", "top.ballast_mb=8")


@pytest.mark.parametrize("stage", ["top", "aside"])
def test_kill_9_leaves_no_orphan_and_the_next_run_continues(mathpipe, tmp_path, stage):
    words = [word.replace("top.", f"{stage}.") for word in SLOW]
    process = start(tmp_path, stage, *words)
    wait_for(lambda: list(tmp_path.glob(f"runs/toy/{stage}-*/item-1.txt")))
    assert states(mathpipe, *words)[stage] == "running"
    code, _, err = mathpipe("run", stage, *words)
    assert code == 2 and "another process is working on" in err
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3  # supervisor, stage, its child in another session
    process.kill()
    process.wait()
    wait_for(lambda: not alive(family), timeout_s=5)
    (out,) = tmp_path.glob(f"runs/toy/{stage}-*")
    assert not (out / "manifest.json").exists() and states(mathpipe, *words)[stage] == "missing"
    kept = (out / "item-0.txt").stat().st_mtime_ns

    assert mathpipe("run", stage, *words)[0] == 0
    assert (out / "item-0.txt").stat().st_mtime_ns == kept and not (out / "usage.json").exists()
    assert mathpipe("run", stage, *words, "--runs", "undisturbed")[0] == 0
    (twin,) = tmp_path.glob(f"undisturbed/toy/{stage}-*")
    items = [f"item-{number}.txt" for number in range(6)]
    assert out.name == twin.name and all((out / name).read_bytes() == (twin / name).read_bytes() for name in items)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_exits_130_and_leaves_nothing_running(mathpipe, tmp_path, signum):
    process = start(tmp_path, "top", *SLOW)
    wait_for(lambda: list(tmp_path.glob("runs/toy/top-*/item-0.txt")))
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=15)
    assert process.returncode == 130 and output.strip().endswith("interrupted; the same command continues from here")
    assert not alive(family)
    assert states(mathpipe, *SLOW)["top"] == "missing"
    assert "was interrupted, continues" in mathpipe("plan", "top", *SLOW)[1]


def test_nothing_to_do_imports_neither_luigi_nor_torch(mathpipe, tmp_path):
    assert mathpipe("run", "top")[0] == 0
    code = (
        "import sys, toy_chain; from mathpipe.pipeline import cli, stages; stages.STAGES = toy_chain.STAGES\n"
        "cli.main(['run', 'top', '--config', 'toy.toml']); assert not {'luigi', 'torch', 'rich', 'sqlalchemy'} & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout


def test_checkpoints_stay_until_the_manifest_stands(tmp_path, monkeypatch):
    """Killed after its last step but before the manifest, a stage continues from its checkpoint."""
    (tmp_path / "toy.toml").write_text("[top]\n", encoding="utf-8")
    words = ["--config", str(tmp_path / "toy.toml"), "--out", str(tmp_path / "out")]
    kept = tmp_path / "out" / "checkpoints" / "step-000001"
    kept.mkdir(parents=True)
    run = toy_chain.run_of("top")
    arguments = stage._parse(run, words)
    with monkeypatch.context() as patched:
        patched.setattr(artifact, "write_json", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stage.execute(run, arguments)
    assert kept.exists() and not (tmp_path / "out" / "manifest.json").exists()
    stage.execute(run, arguments)
    assert not kept.parent.exists() and (tmp_path / "out" / "manifest.json").exists()
