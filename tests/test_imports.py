"""Who may import whom (the design's rule), read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mathpipe.pipeline import stages

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipeline", "corpus", "pretrain", "sft", "grpo", "eval")
STAGE_FOLDERS = FOLDERS[1:]
OF_PIPELINE = {"artifact", "config", "log", "stage"}
OF_OTHERS = {
    "sft": {"pretrain.model", "pretrain.tokenizer", "pretrain.checkpoint", "pretrain.optim", "pretrain.loop", "pretrain.watch",
            "eval.sandbox"},  # fmt: skip
    # sft.prompts is the one prompt renderer, sft.problems the one generator of word problems
    "eval": {
        *(f"pretrain.{name}" for name in ("model", "tokenizer", "checkpoint", "optim", "generate", "memory")),
        *("sft.prompts", "sft.problems"),
    },
    "grpo": {
        *(f"pretrain.{name}" for name in ("model", "tokenizer", "checkpoint", "optim", "attention", "branches", "memory", "loss")),
        *("pretrain.generate", "pretrain.loop", "pretrain.watch", "sft.prompts", "sft.problems", "sft.generated", "sft.schema", "eval.*"),
    },
}
BENCH_OF_PIPELINE = OF_PIPELINE | {"bench"}


def imported(file):
    """`folder.module` of every mathpipe module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            module = node.module or ""
            # `from mathpipe.pretrain import model` names a module, `from mathpipe.pretrain.model import f` is one
            names = [f"{module}.{alias.name}" for alias in node.names] if module.count(".") < 2 else [module]
        yield from (".".join(name.split(".")[1:3]) for name in names if name.startswith("mathpipe."))


@pytest.mark.parametrize("folder", STAGE_FOLDERS)
def test_stage_folders_import_the_frame_and_little_else(folder):
    for file in (ROOT / folder).rglob("*.py"):
        for name in imported(file):
            other, _, module = name.partition(".")
            if other == "pipeline":
                allowed = module in (BENCH_OF_PIPELINE if file.name.startswith("bench") else OF_PIPELINE)
            else:
                allowed = other == folder or name in OF_OTHERS.get(folder, set()) or f"{other}.*" in OF_OTHERS.get(folder, set())
            assert allowed, f"{folder}/{file.name} imports mathpipe.{name}"


def test_only_the_command_line_and_its_parts_import_luigi_s_side():
    files = [file for folder in FOLDERS for file in (ROOT / folder).glob("*.py")]
    users = {f"{file.parent.name}/{file.name}" for file in files if "pipeline.tasks" in set(imported(file))}
    assert users <= {"pipeline/cli.py", "pipeline/ui.py", "pipeline/bench.py"}


def test_the_frame_imports_no_stage():
    for file in (ROOT / "pipeline").glob("*.py"):
        assert {name.partition(".")[0] for name in imported(file)} <= {"pipeline"}, file


def test_configs_are_light():
    heavy = ["torch", "transformers", "numpy", "pyarrow", "daft", "luigi", "rich", "deepspeed", "vllm", "sqlalchemy", "starlette"]
    modules = sorted({stage.config.partition(":")[0] for stage in stages.STAGES.values()})
    code = f"import sys, {', '.join(modules)}; found = set({heavy}) & set(sys.modules); assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stage", stages.STAGES.values(), ids=lambda stage: stage.name)
def test_every_stage_keeps_the_protocol(stage):
    """`run(config, inputs, out)` with the config of the table, inputs that the table names, a front door at the end."""
    _, folder, module = stage.module.split(".")
    tree = ast.parse((ROOT / folder / f"{module}.py").read_text(encoding="utf-8"))
    (run,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    names = [argument.arg for argument in run.args.args]
    kinds = [ast.unparse(argument.annotation).split(".")[-1] for argument in run.args.args]
    assert names == ["config", "inputs", "out"] and kinds[0] == stage.config.partition(":")[2]
    assert ast.unparse(tree.body[-1]) == "if __name__ == '__main__':\n    stage.main(run)"
    configs = [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / folder).glob("*config.py")]
    fields = fields_of(kinds[1], tree, *configs)
    given = {name.partition(".")[0] for name in stage.inputs}  # `runs.math.0` is an entry of the field `runs`
    assert {name for name, default in fields.items() if default is None} <= given <= set(fields)


def fields_of(name, *trees):
    """Field → default expression (or None) of a class of that name."""
    (cls,) = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return {node.target.id: node.value for node in cls.body if isinstance(node, ast.AnnAssign)}
