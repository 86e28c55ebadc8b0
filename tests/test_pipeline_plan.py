"""Config files, hashes and states, without running a stage."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathpipe.pipeline import artifact, config, plan, stages
from mathpipe.pipeline.config import ConfigError, Runtime

PROFILES = sorted(plan.CONFIGS.glob("*.toml"))


@dataclass(frozen=True)
class Sample:
    SECTION: ClassVar[str] = "sample"
    size: int
    lr: float = 0.1
    name: str = "x"
    sizes: tuple[int, ...] = ()
    limit: int | None = None


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.stem)
def test_profiles_are_complete_and_parse(file, tmp_path):
    made = plan.make_plan(tmp_path, file.stem)
    assert list(made.steps) == list(stages.STAGES)
    assert {step.state for step in made.steps.values()} == {"missing"}
    assert len({step.hash for step in made.steps.values()}) == len(made.steps)


def test_the_plan_of_the_paper_is_fast_and_needs_no_torch(tmp_path):
    code = (
        "import sys; from mathpipe.pipeline import cli; cli.main(['plan', '--profile', 'paper'])\n"
        "assert not {'torch', 'sqlalchemy', 'starlette', 'uvicorn'} & set(sys.modules)"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in stages.default())
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 3


def test_a_value_changes_the_hashes_of_its_stage_and_what_follows_only(tmp_path):
    before = plan.make_plan(tmp_path).steps
    after = plan.make_plan(tmp_path, overrides=["grpo.seed=12345"]).steps
    changed = {name for name in before if before[name].hash != after[name].hash}
    assert changed == {"grpo", "evaluate", "report"} == set(stages.downstream("grpo"))


def test_pending_stops_above_a_finished_artifact(tmp_path):
    made = plan.make_plan(tmp_path)
    assert [step.name for step in made.pending(["pages"])] == ["crawl", "pages"]
    finish(made.steps["pages"])
    made = plan.make_plan(tmp_path)
    assert made.steps["pages"].state == "done" and [step.name for step in made.pending(["round1.train"])] == ["round1.train"]


def test_an_artifact_of_another_recipe_in_its_place_is_refused(tmp_path):
    finish(plan.make_plan(tmp_path).steps["crawl"], hash="00000000")
    with pytest.raises(artifact.ContractError, match="crawl-.*says hash 00000000; delete"):
        plan.make_plan(tmp_path)


def finish(step, **values):
    step.out.mkdir(parents=True)
    artifact.write_json(step.out / "manifest.json", {"stage": step.name, "hash": step.hash, "inputs": {}, "wall_s": 1.0} | values)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"size": 1, "nmae": "y"}, "here: unknown key 'nmae'; did you mean 'name'?"),
        ({}, "here: key 'size' is missing"),
        ({"size": "1"}, "here size: expected int, found '1'"),
        ({"size": True}, "here size: expected int, found True"),
        ({"size": 1.5}, "here size: expected int, found 1.5"),
        ({"size": 1, "sizes": [1, "2"]}, "here sizes: expected int, found '2'"),
    ],
)
def test_tables_are_read_strictly(table, message):
    with pytest.raises(ConfigError) as error:
        config.build(Sample, table, "here")
    assert str(error.value) == message


def test_int_for_float_and_list_for_tuple_are_taken():
    made = config.build(Sample, {"size": 1, "lr": 2, "sizes": [3, 4]}, "here")
    assert made == Sample(1, 2.0, "x", (3, 4), None) and type(made.lr) is float


@given(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(st.characters(codec="utf-8", exclude_characters="\r\x00")),
       st.lists(st.integers(-(2**63), 2**63 - 1)))  # fmt: skip
def test_a_config_survives_its_file(size, lr, name, sizes):
    import tomllib

    import tomli_w

    made = Sample(size, lr, name, tuple(sizes))
    table = tomllib.loads(tomli_w.dumps({"sample": config.to_table(made)}))["sample"]
    assert config.build(Sample, table, "here") == made


def test_overrides_are_toml_and_a_bare_word_is_a_string(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[a]\nx = 1\n")
    tables = config.read_tables(file, ["a.x=2", "a.y=word", "b.z=[1, 2]", 'b.s="1"', "b.t=true"])
    assert tables == {"a": {"x": 2, "y": "word"}, "b": {"z": [1, 2], "s": "1", "t": True}}


@pytest.mark.parametrize(("text", "message"), [("x = 1\n", "outside any table"), ("[a\n", "not valid TOML")])
def test_broken_files_are_named(tmp_path, text, message):
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        config.read_tables(file)
    with pytest.raises(ConfigError, match="no such config file"):
        config.read_tables(tmp_path / "none.toml")


def test_runtime_is_checked():
    with pytest.raises(ConfigError, match="runtime.num_workers must be at least 1, found 0"):
        Runtime(num_workers=0)


def test_the_hash_depends_on_every_part_of_the_recipe_and_not_on_key_order():
    base = {"stage": "s", "version": 1, "config": {"a": 1, "b": 2}, "inputs": {"x": "aa"}}
    first = artifact.recipe_hash(**base)
    assert first == artifact.recipe_hash(**{**base, "config": {"b": 2, "a": 1}})
    changed = [{"stage": "t"}, {"version": 2}, {"config": {"a": 1, "b": 3}}, {"inputs": {"x": "ab"}}, {"inputs": {"y": "aa"}},
               {"fingerprint": "f"}, {"attempt": 1}]  # fmt: skip
    assert len({first, *(artifact.recipe_hash(**{**base, **part}) for part in changed)}) == 8


def test_manifests_that_cannot_be_read_say_what_to_do(tmp_path):
    with pytest.raises(artifact.ContractError, match="missing \\(an unfinished artifact there\\)"):
        artifact.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"stage": "crawl"')
    with pytest.raises(artifact.ContractError, match="not JSON .*delete"):
        artifact.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(artifact.ContractError, match="no stage and hash"):
        artifact.read_manifest(tmp_path)


def test_resuming_drops_metrics_that_will_be_written_again(tmp_path):
    for step in range(1, 6):
        artifact.append_metrics(tmp_path, step=step, loss=1 / step)
    artifact.truncate_metrics(tmp_path, keep=3)
    assert [row["step"] for row in artifact.read_metrics(tmp_path)] == [1, 2, 3]


def test_stage_table_is_a_dag_with_four_rounds_in_running_order():
    seen = set()
    for stage in stages.STAGES.values():
        assert set(stage.inputs.values()) <= seen, f"{stage.name} stands before what it reads"
        seen.add(stage.name)
    assert [f"round{n}.train" in seen for n in (1, 4, 5)] == [True, True, False]
    assert stages.upstream("pages") == ["crawl", "pages"] and stages.downstream("evaluate") == ["evaluate", "report"]


def test_contexts_must_fit_the_model(tmp_path):
    with pytest.raises(ConfigError, match="sft.context 8192 exceeds pretrain.max_position"):
        plan.make_plan(tmp_path, overrides=["sft.context=8192"])


def test_every_field_of_every_config_has_a_docstring():
    import ast

    for file in sorted({Path(sys.modules[stage.config_class().__module__].__file__) for stage in stages.STAGES.values()}):
        for cls in [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef) and node.name.endswith("Config")]:
            for node, following in zip(cls.body, [*cls.body[1:], None], strict=True):
                if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) not in ("ClassVar[str]", "ClassVar[int]", "Runtime"):
                    documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                    assert documented, f"{file.name} {cls.name}.{ast.unparse(node.target)} has no docstring"


def test_status_json_has_exactly_the_promised_keys(tmp_path, capsys):
    from mathpipe.pipeline import cli

    cli.main(["status", "--json", "--runs", str(tmp_path)])
    rows = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in rows] == stages.default()
    assert {tuple(row) for row in rows} == {("stage", "state", "path", "hash", "seconds")}


def test_optional_stages_run_only_when_asked_for(tmp_path):
    made = plan.make_plan(tmp_path)
    chain, sweep = stages.default(), set(stages.upstream("volumes"))
    assert "volumes" not in chain and "corpus.report" not in chain and {"volume2", "volume1.tokenizer"} <= sweep
    assert not {step.name for step in made.pending(chain)} & (sweep - set(chain))
    assert not {"round2.train", "corpus", "pretrain"} & sweep, "the sweep needs round 1 alone"
    assert "volumes" not in stages.downstream("pages") and "volumes" in stages.downstream("volume2.select")


def test_a_report_takes_the_volumes_where_they_are_done_and_makes_nothing_run_for_them(tmp_path):
    before = plan.make_plan(tmp_path).steps
    assert "volumes" not in before["report"].inputs and "volumes" not in before["corpus.report"].inputs
    finish(before["volumes"])
    after = plan.make_plan(tmp_path).steps
    assert after["report"].inputs["volumes"] == before["volumes"].out and after["report"].hash != before["report"].hash
    assert {name for name in before if before[name].hash != after[name].hash} == {"report", "corpus.report"}


def test_closing_tables_show_what_the_rounds_and_volumes_measured(tmp_path):
    from mathpipe.pipeline import tables

    steps = plan.make_plan(tmp_path).steps
    for number, overlap in ((1, None), (2, 0.625)):
        finish(steps[f"round{number}"])
        artifact.append_metrics(steps[f"round{number}"].out, round=number, pages=1000 * number, overlap=overlap, recall=None)
    finish(steps["volumes"], best=2, judged_on="problems")
    artifact.append_metrics(steps["volumes"].out, volume=1, **{"problems bits_per_byte": 1.5, "problems difference": 0.0})
    made = plan.make_plan(tmp_path)
    rounds = tables.closing(made, ["corpus"]).splitlines()
    assert [line.split() for line in rounds] == [["round", "pages", "overlap"], ["1", "1,000", "–"], ["2", "2,000", "0.625"]]
    assert "1.5000" in tables.closing(made, ["volumes"]) and "volume 2" in tables.closing(made, ["volumes"])
    assert tables.closing(made, ["sft"]) == ""


def test_asking_for_the_corpus_takes_the_figures_of_every_round():
    from mathpipe.pipeline import cli

    assert cli._targets(["corpus"]) == ["round4", "corpus"] and cli._targets(["pages"]) == ["pages"]
    assert cli._targets([]) == stages.default()
