"""What would run and why: config → hash → directory for every stage, without running or importing any of them.

A stage's state is read from its directory: `done` (manifest there), `running` (a process holds it), `failed` or `waiting` for people
(the launcher left failure.json), `stale` (only artifacts of other recipes), `missing`. Forced reruns are numbered in
`runs/<profile>/attempts.json`: the number enters the hash, so a rerun gets a directory of its own and so does everything
after it, and an old artifact is never overwritten.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathpipe.pipeline import artifact, stages
from mathpipe.pipeline.config import ConfigError, Runtime, Tables, build, nearest, read_tables, to_table
from mathpipe.pipeline.stage import WAITING, fingerprint, is_running
from mathpipe.pipeline.stages import Stage

CONFIGS = Path(__file__).parent / "configs"
ATTEMPTS = "attempts.json"
FAILURE = "failure.json"
HASH = re.compile("[0-9a-f]{8}")


@dataclass(frozen=True)
class Step:
    """One stage with its config settled: what it reads, where its artifact lies, how it stands."""

    stage: Stage
    config: Any
    base: str
    """Recipe hash without the number of forced reruns: the key in attempts.json."""
    hash: str
    attempt: int
    out: Path
    inputs: dict[str, Path]
    state: str
    reason: str
    """Why it would run, or an empty string."""
    seconds: float | None
    """Wall time, where it is done."""

    @property
    def name(self) -> str:
        return self.stage.name


@dataclass(frozen=True)
class Plan:
    """Every stage of a profile, in running order."""

    profile: str
    root: Path
    """`runs/<profile>`."""
    runtime: Runtime
    steps: dict[str, Step]

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages with the inputs that these settings give them."""
        return {name: step.stage for name, step in self.steps.items()}

    def pending(self, targets: Iterable[str]) -> list[Step]:
        """Steps that have to run to bring `targets` about, in running order; nothing above a finished artifact."""
        found: set[str] = set()

        def visit(name: str) -> None:
            if name not in found and self.steps[name].state != "done":
                found.add(name)
                for source in self.steps[name].stage.inputs.values():
                    visit(source)

        for target in targets:
            visit(target)
        return [step for name, step in self.steps.items() if name in found]


def profile_file(profile: str) -> Path:
    """The config file of a named profile.

    Raises:
        ConfigError: there is none of that name.
    """
    known = sorted(file.stem for file in CONFIGS.glob("*.toml"))
    if profile not in known:
        listed = f"profiles: {', '.join(known)}; or give a file with --config"
        raise ConfigError(f"unknown profile {profile!r}{nearest(profile, known)} ({listed})")
    return CONFIGS / f"{profile}.toml"


def make_plan(runs: Path, profile: str | None = None, file: Path | None = None, overrides: Iterable[str] = ()) -> Plan:
    """The plan of a profile (default `tiny`) or of a config file, which lends its name to the runs folder.

    Raises:
        ConfigError: unknown profile, section or key, or a value that a stage refuses.
        ContractError: a finished artifact has a manifest that cannot be read.
    """
    name = profile or (file.stem if file else "tiny")
    file = file or profile_file(name)
    tables = read_tables(file, overrides)
    root = runs / name
    runtime = build(Runtime, tables.get("runtime", {}), f"{file}: [runtime]")
    configs = _configs(tables, file, runtime)
    stages.check_agreement(configs)
    prints = {section: fingerprint(config) for section, config in configs.items()}
    attempts = read_attempts(root)
    folders = artifact_folders(root)
    steps: dict[str, Step] = {}
    for stage in stages.STAGES.values():
        section = stage.config_class().SECTION
        _refuse_settled(configs[section], stage, file)
        config = dataclasses.replace(configs[section], **stage.settings)
        if stage.conditional:
            wanted = {key: stage.conditional[key] for key in config.conditional_inputs()}
            stage = dataclasses.replace(stage, inputs={**stage.inputs, **wanted})
        table = to_table(config)
        further = {key: source for key, source in stage.when_done.items() if steps[source].state == "done"}
        sources = {key: steps[source] for key, source in {**stage.inputs, **further}.items()}
        hashes = {key: source.hash for key, source in sources.items()}
        version = stage.config_class().VERSION
        base = artifact.recipe_hash(stage.name, version, table, hashes, prints[section])
        attempt = attempts.get(f"{stage.name}-{base}", 0)
        identity = artifact.recipe_hash(stage.name, version, table, hashes, prints[section], attempt)
        out = root / f"{stage.name}-{identity}"
        step = Step(
            stage, config, base, identity, attempt, out, {key: source.out for key, source in sources.items()}, "missing", "missing", None,
        )  # fmt: skip
        steps[stage.name] = _with_state(step, hashes, folders.get(stage.name, []))
    return Plan(name, root, runtime, steps)


def _configs(tables: Tables, file: Path, runtime: Runtime) -> dict[str, Any]:
    """Section → config object; every table must belong to a stage."""
    classes = {cls.SECTION: cls for cls in (stage.config_class() for stage in stages.STAGES.values())}
    for section in tables:
        if section != "runtime" and section not in classes:
            raise ConfigError(f"{file}: unknown section [{section}]{nearest(section, [*classes, 'runtime'])}")
    return {section: build(cls, tables.get(section, {}), f"{file}: [{section}]", runtime) for section, cls in classes.items()}


def _refuse_settled(config: Any, stage: Stage, file: Path) -> None:
    """Raise ConfigError where the user gives a value that each stage of the section has for itself."""
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for key, own in stage.settings.items():
        if getattr(config, key) != defaults[key]:
            found = f"{key} = {getattr(config, key)!r}"
            raise ConfigError(f"{file}: [{config.SECTION}] {found}: each stage has its own ({stage.name}: {own!r}); leave it out")


def artifact_folders(root: Path) -> dict[str, list[Path]]:
    """Stage name → its artifact directories, finished or not."""
    found: dict[str, list[Path]] = {}
    if root.is_dir():
        for entry in os.scandir(root):
            name, dash, digits = entry.name.rpartition("-")
            if dash and HASH.fullmatch(digits) and entry.is_dir():
                found.setdefault(name, []).append(Path(entry.path))
    return found


def _with_state(step: Step, hashes: dict[str, str], folders: list[Path]) -> Step:
    out = step.out
    if artifact.is_complete(out):
        manifest = artifact.read_manifest(out)
        if manifest["hash"] != step.hash:
            raise artifact.ContractError(f"{out}: its manifest says hash {manifest['hash']}; delete {out} and run its stage again")
        return dataclasses.replace(step, state="done", reason="", seconds=manifest.get("wall_s"))
    old = [path for path in folders if path != out and artifact.is_complete(path)]
    newest = max(old, key=lambda path: (path / artifact.MANIFEST).stat().st_mtime, default=None)
    why = _difference(step, hashes, newest) if newest else "missing"
    if is_running(out):
        return dataclasses.replace(step, state="running", reason="running now")
    failure = read_failure(out)
    if failure:
        state = "waiting" if failure["exit_code"] == WAITING else "failed"
        return dataclasses.replace(step, state=state, reason=f"{state}: {failure['cause']}")
    if out.is_dir() and any(entry.name != ".lock" for entry in os.scandir(out)):
        why += "; was interrupted, continues" if why != "missing" else " (was interrupted, continues)"
    return dataclasses.replace(step, state="stale" if old else "missing", reason=why)


def _difference(step: Step, hashes: dict[str, str], old: Path) -> str:
    """How the current recipe differs from the newest finished artifact's."""
    try:
        manifest, tables = artifact.read_manifest(old), read_tables(old / "config.toml")
    except (artifact.ContractError, ConfigError):
        return f"recipe changed ({old} cannot be read)"
    before, now = tables.get(step.config.SECTION, {}), to_table(step.config)
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    inputs = [key for key, value in hashes.items() if manifest["inputs"].get(key, {}).get("hash") != value]
    parts = []
    if keys:
        changes = ", ".join(f"{step.config.SECTION}.{key} {before.get(key, '(none)')} → {now.get(key, '(none)')}" for key in keys[:3])
        parts.append(f"config changed: {changes}{' …' if len(keys) > 3 else ''}")
    if inputs:
        parts.append(f"input changed: {', '.join(inputs)}")
    if manifest.get("version") != step.config.VERSION:
        parts.append(f"version {manifest.get('version')} → {step.config.VERSION}")
    return "; ".join(parts) or ("forced rerun" if step.attempt else "what it reads from outside changed")


def read_failure(out: Path) -> dict[str, Any] | None:
    """What the launcher wrote when the stage last failed or began to wait: exit_code, cause, log, time."""
    try:
        return json.loads((out / FAILURE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise artifact.ContractError(f"{out / FAILURE}: not JSON ({error}); delete it") from None


def read_attempts(root: Path) -> dict[str, int]:
    """`<stage>-<base hash>` → number of forced reruns."""
    file = root / ATTEMPTS
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise artifact.ContractError(f"{file}: not JSON ({error}); delete it to forget forced reruns") from None


def force(plan: Plan, name: str) -> None:
    """Number a new attempt of a stage whose artifact is finished; one that is not finished runs anyway."""
    step = plan.steps[name]
    if step.state == "done":
        attempts = read_attempts(plan.root)
        attempts[f"{name}-{step.base}"] = step.attempt + 1
        artifact.write_json(plan.root / ATTEMPTS, attempts)
