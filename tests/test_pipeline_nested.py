"""Nested config tables: lists of tables, tables of numbers and tables of tables, as strict as flat ones."""

import tomllib
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from mathpipe.pipeline import artifact, config
from mathpipe.pipeline.config import ConfigError, Runtime


@dataclass(frozen=True)
class Part:
    frac: float
    mix: dict[str, float]

    def __post_init__(self):
        if self.frac < 0:
            raise ValueError(f"frac must not be negative, found {self.frac}")


@dataclass(frozen=True)
class Origin:
    kind: str = "files"
    paths: tuple[str, ...] = ()
    label: str | None = None


@dataclass(frozen=True)
class Nested:
    SECTION: ClassVar[str] = "nested"
    parts: tuple[Part, ...] = (Part(1.0, {"math": 1.0}),)
    origins: dict[str, Origin] = field(default_factory=dict)
    runtime: Runtime = field(default_factory=Runtime)


TEXT = """
[nested]
parts = [{ frac = 1, mix = { math = 1, "a b" = 0.5 } }]
origins.code = { kind = "python", paths = ["x", "y"] }
[[other.parts]]
frac = 0.5
mix = { code = 2 }
[[other.parts]]
frac = 0.5
mix.math = 2
[other.origins.arxiv]
label = "z"
"""
INLINE = Nested((Part(1.0, {"math": 1.0, "a b": 0.5}),), {"code": Origin("python", ("x", "y"))})
TABLES = Nested((Part(0.5, {"code": 2.0}), Part(0.5, {"math": 2.0})), {"arxiv": Origin(label="z")})


def test_inline_tables_and_arrays_of_tables_are_read(tmp_path):
    found = tomllib.loads(TEXT)
    assert config.build(Nested, found["nested"], "here") == INLINE
    assert config.build(Nested, found["other"], "here") == TABLES
    assert type(INLINE.parts[0].mix["math"]) is float


@pytest.mark.parametrize("made", [INLINE, TABLES, Nested()])
def test_the_planner_and_the_stage_name_the_same_artifact(made, tmp_path):
    """The planner hashes the profile's values, the stage those of the resolved config.toml."""
    file = tmp_path / "config.toml"
    config.write_tables(file, {"nested": config.to_table(made)})
    again = config.build(Nested, config.read_tables(file)["nested"], "there")
    assert again == made
    assert len({artifact.recipe_hash("s", 1, config.to_table(one), {}) for one in (made, again)}) == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"parts": [{"frac": 1.0, "mix": {}}, {"frca": 1.0, "mix": {}}]}, "here parts[1]: unknown key 'frca'; did you mean 'frac'?"),
        ({"parts": [{"mix": {}}]}, "here parts[0]: key 'frac' is missing"),
        ({"parts": [{"frac": -1, "mix": {}}]}, "here parts[0]: frac must not be negative, found -1.0"),
        ({"parts": [{"frac": 1.0, "mix": {"math": "x"}}]}, "here parts[0] mix.math: expected float, found 'x'"),
        ({"parts": [3]}, "here parts[0]: expected a table, found 3"),
        ({"parts": {"frac": 1.0}}, "here parts: expected a list, found {'frac': 1.0}"),
        ({"origins": {"code": {"knid": "x"}}}, "here origins.code: unknown key 'knid'; did you mean 'kind'?"),
        ({"origins": {"code": 3}}, "here origins.code: expected a table, found 3"),
        ({"origins": [1]}, "here origins: expected a table, found [1]"),
    ],
)
def test_nested_tables_are_read_strictly(table, message):
    with pytest.raises(ConfigError) as error:
        config.build(Nested, table, "here")
    assert str(error.value) == message


def test_overrides_give_whole_tables_or_reach_into_them(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(TEXT)
    tables = config.read_tables(file, ["nested.parts=[{frac=1.0, mix={code=1}}]", "nested.origins.code.kind=files", "new.a.b=1"])
    made = config.build(Nested, tables["nested"], "here")
    assert made == Nested((Part(1.0, {"code": 1.0}),), {"code": Origin("files", ("x", "y"))})
    assert tables["new"] == {"a": {"b": 1}}
    with pytest.raises(ConfigError, match=r"--set 'nested.parts.0.frac=1': 'parts' is not a table; .*--set 'nested.parts="):
        config.read_tables(file, ["nested.parts.0.frac=1"])
