"""Configuration: TOML tables become frozen dataclasses, strictly.

Every stage keeps a frozen dataclass in the torch-free `config.py` of its folder, one field per value, one docstring per
field. A config file is a list of tables named after sections (`[grpo]`, `[select]`, …) plus `[runtime]`, which holds what
may differ between two machines that compute the same thing and therefore stays outside every hash.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import os
import shlex
import tomllib
import types
import typing
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

T = TypeVar("T")
Tables = dict[str, dict[str, Any]]
SANDBOXES = ("auto", "bubblewrap", "landlock", "none")
ANNOTATION_PORT = 8765
"""Where `mathpipe annotate` serves on 127.0.0.1 unless told otherwise."""


def annotate_command(profile: str, words: Sequence[str] = ()) -> str:
    """What is typed to serve the page of a profile: in a checkout, where the command is not in PATH, by make.

    Args:
        profile: empty where `words` name a config file instead.
        words: further arguments.
    """
    is_checkout = Path("Makefile").is_file() and Path(".venv/bin/mathpipe").is_file()
    if is_checkout and profile:
        return shlex.join(["make", "annotate", f"PROFILE={profile}", *([f"ARGS={shlex.join(words)}"] if words else [])])
    given = ["--profile", profile] if profile else []
    return shlex.join([".venv/bin/mathpipe" if is_checkout else "mathpipe", "annotate", *given, *words])


class ConfigError(ValueError):
    """The user's config or command line is wrong; the message names the place, what was found and what to do."""


@dataclass(frozen=True)
class Runtime:
    """Hardware and display: outside every hash, because results must not depend on it."""

    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu` or `cuda`."""
    num_processes: int = 1
    """Data-parallel processes of a training stage on this node."""
    num_threads: int = 1
    """OpenMP threads per training process."""
    num_workers: int = 2
    """Worker processes of a corpus stage; connections of a crawl, 8 at most."""
    requests_per_s: float = 2.0
    """Requests that a crawl begins per second at most, over all its connections."""
    log_interval: int = 5
    """Training steps between two lines of metrics.jsonl."""
    peak_tflops: float = 0.0
    """Peak of one device for the MFU, in TFLOP/s; 0: that of a known GPU (dense bf16), on CPU that of a matmul (pretrain/watch.py)."""
    cluster: str = "native"
    """Where corpus stages run: `native` (this machine), `local` (a Ray started here), or a Ray cluster whose nodes all see the
    crawl and `runs/` under the same paths: `ray://host:port`, or `host:port` from one of its nodes."""
    sandbox: str = "auto"
    """Where programs that a model or a data set wrote are run: `bubblewrap`, `landlock`, `auto` (the first that works here; otherwise the
    stage refuses), or `none`: unprotected, with limits alone (eval/sandbox.py)."""
    database: str = ""
    """Where people's decisions lie: empty: `annotations.sqlite` in the profile's folder; a file; or, for teams,
    `postgresql://user@host/name` (password in ~/.pgpass or PGPASSWORD)."""
    wait: bool = False
    """Whether a stage that asks people waits for them although nobody serves its page (`mathpipe run --wait`)."""
    suggest_url: str = ""
    """An OpenAI-compatible endpoint (https://…/v1; key in OPENAI_API_KEY) that suggests decisions to people and never decides; empty:
    none."""
    suggest_model: str = ""
    """The model's name there."""

    def __post_init__(self) -> None:
        for name in ("num_processes", "num_threads", "num_workers", "log_interval"):
            if getattr(self, name) < 1:
                raise ConfigError(f"runtime.{name} must be at least 1, found {getattr(self, name)}")
        if self.requests_per_s <= 0:
            raise ConfigError(f"runtime.requests_per_s must be positive, found {self.requests_per_s}")
        if self.peak_tflops < 0:
            raise ConfigError(f"runtime.peak_tflops must not be negative, found {self.peak_tflops}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"runtime.device must be auto, cpu or cuda, found {self.device!r}")
        if self.sandbox not in SANDBOXES:
            raise ConfigError(f"runtime.sandbox must be {', '.join(SANDBOXES[:-1])} or none, found {self.sandbox!r}")
        if self.cluster not in ("native", "local") and ":" not in self.cluster:
            raise ConfigError(f"runtime.cluster must be native, local, ray://host:port or host:port, found {self.cluster!r}")
        if self.suggest_url and not (self.suggest_url.startswith(("http://", "https://")) and self.suggest_model):
            found = f"{self.suggest_url!r}, {self.suggest_model!r}"
            raise ConfigError(f"runtime.suggest_url must be http(s)://… and needs runtime.suggest_model; found {found}")
        if "://" in self.database and urllib.parse.urlsplit(self.database).password:
            raise ConfigError("runtime.database has a password, which every artifact's config.toml would show; use ~/.pgpass or PGPASSWORD")

    def uses_gpu(self) -> bool:
        """Whether a stage will compute on a GPU: the one place that decides it, without importing torch."""
        return self.device == "cuda" or (self.device == "auto" and num_gpus() > 0 and not is_cpu_build())

    def require_devices(self) -> None:
        """Raise ConfigError when this machine lacks the GPUs that `device` and `num_processes` ask for."""
        if self.uses_gpu() and num_gpus() < self.num_processes:
            raise ConfigError(
                f"needs {self.num_processes} GPU{'s' * (self.num_processes > 1)} (runtime.device {self.device}, runtime.num_processes "
                f"{self.num_processes}), found {num_gpus()}; run it on such a machine or take a smaller profile"
            )


def num_gpus() -> int:
    """NVIDIA GPUs that this process may use: device files, at most as many as CUDA_VISIBLE_DEVICES names."""
    found, named = sum(1 for _ in Path("/dev").glob("nvidia[0-9]*")), os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if named is None else min(found, sum(1 for name in named.split(",") if name.strip() not in ("", "-1")))


def is_cpu_build() -> bool:
    """Whether the installed torch was built without CUDA."""
    return importlib.metadata.version("torch").endswith("+cpu")


def memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def read_tables(path: Path, overrides: Iterable[str] = ()) -> Tables:
    """Tables of a TOML file with `section.key=value` overrides applied (value in TOML syntax; a bare word is a string).

    A key may reach into the file's nested tables: `sources.sources.code.max_tokens=1_000_000`.

    Raises:
        ConfigError: the file is missing or not TOML, or an override is not `section.key=value`.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for key, value in tables.items():
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: {key!r} stands outside any table; write it below a [section]")
    for override in overrides:
        key, equals, text = override.partition("=")
        name, dot, field = key.strip().partition(".")
        if not (equals and dot and field):
            raise ConfigError(f"--set {override!r}: expected section.key=value, for example grpo.group_size=16")
        *outer, last = [name, *field.split(".")]
        table: Any = tables
        for step in outer:
            table = table.setdefault(step, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {override!r}: {step!r} is not a table; give its whole value: --set '{name}.{step}=[…]'")
        table[last] = _parse_value(text.strip())
    return tables


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def build(cls: type[T], table: Mapping[str, Any], where: str, runtime: Runtime | None = None) -> T:
    """`cls` from one TOML table; a field called `runtime` receives `runtime` and may not stand in the table.

    Args:
        where: what an error calls the table, for example `tiny.toml: [grpo]`.

    Raises:
        ConfigError: unknown key (with the nearest name), wrong type, missing key, or a value the class refuses.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name != "runtime"}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, fields)}")
    values: dict[str, Any] = {key: _convert(table[key], hints[key], f"{where} {key}") for key in table}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}: key {name!r} is missing")
    if "runtime" in hints:
        values["runtime"] = runtime or Runtime()
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _convert(value: Any, wanted: Any, where: str) -> Any:
    """`value` as the annotated type; int is accepted for float, a list for a tuple, a table for a dataclass; nothing else is coerced."""
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        wanted = next(a for a in args if a is not types.NoneType)
        return _convert(value, wanted, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, found {value!r}")
        item_types = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(item_types) != len(value):
            raise ConfigError(f"{where}: expected {len(item_types)} values, found {len(value)}")
        places = [f"{where}[{i}]" if dataclasses.is_dataclass(item) else where for i, item in enumerate(item_types)]
        return tuple(_convert(v, t, place) for v, t, place in zip(value, item_types, places, strict=True))
    is_dataclass = dataclasses.is_dataclass(wanted)
    if (is_dataclass or origin is dict or origin is Mapping) and not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a table, found {value!r}")
    if is_dataclass:
        return build(wanted, value, where)
    if origin is dict or origin is Mapping:
        return {k: _convert(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {wanted.__name__}, found {value!r}")
    return value


def to_table(config: Any) -> dict[str, Any]:
    """Plain TOML-ready table of a config dataclass, nested ones included, without `runtime` and without fields that are None."""
    table = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "runtime"}
    return {key: _plain(value) for key, value in table.items() if value is not None}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_table(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def write_tables(path: Path, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Write tables as TOML, readable by `read_tables`."""
    partial = path.with_suffix(path.suffix + ".tmp")
    partial.write_text(tomli_w.dumps(tables), encoding="utf-8")
    partial.replace(path)
