"""`mathpipe show completions` on completions as the stage writes them."""

import pyarrow as pa
import pytest
from rich.console import Console

from mathpipe.grpo import show
from mathpipe.grpo.rollout import COMPLETIONS
from mathpipe.pipeline import artifact, cli


def row(question, reward, advantage, **values):
    base = dict.fromkeys(COMPLETIONS.names) | {
        "step": 3, "question": question, "answer": "7", "completion": f" {reward}", "reward": reward,
        "reason": "correct" if reward else "wrong",
        "found": str(reward), "step_advantages": [], "advantage": advantage, "num_tokens": 4, "finished": True, "temperature": 1.0,
    }  # fmt: skip
    return base | values


@pytest.fixture
def folder(tmp_path):
    nan = float("nan")
    mine = [row("1+6?", 0.0, -1.0, finished=False), row("1+6?", 1.0, 1.0), row("1+6?", nan, 0.0), row("[2+5]?", 1.0, 0.0)]
    theirs = [row("3+4?", 1.0, 0.5, step_advantages=[1.5, 0.5]), row("3+4?", 0.0, -0.5)]
    for rank, rows in enumerate([mine, theirs]):
        artifact.write_parquet(tmp_path / "completions" / f"step-00003-{rank}.parquet", pa.Table.from_pylist(rows, schema=COMPLETIONS))
    return tmp_path


def test_groups_of_all_processes_in_order_with_best_and_worst(folder):
    found = show.groups(folder, 3)
    assert [rows[0]["question"] for rows in found] == ["1+6?", "[2+5]?", "3+4?"]
    best, worst = show.best_and_worst(found[0])
    assert (best["reward"], worst["reward"]) == (1.0, 0.0)
    assert show.groups(folder, -1) == found or found[0][2]["reward"] != found[0][2]["reward"]  # NaN is not equal to itself


def test_table_says_what_matters(folder, capsys):
    show.main(folder, -1, 2, Console(width=160))
    text = capsys.readouterr().out
    assert "[2+5]?" in text, "brackets of a question are no markup"
    assert "4 (cut)" in text and "reward 0.500 ± 0.500, 3 distinct answers" in text
    assert "step 3: 2 of 3 questions" in text and "3+4?" not in text


def test_advantages_of_steps_are_shown_step_by_step(folder):
    assert next(show.table_rows(show.groups(folder, 3)[2]))[3] == "+1.50, +0.50"


def test_a_step_that_is_not_there_is_one_clear_line(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no completions of step 4; there are steps 3 to 3"):
        show.groups(folder, 4)
    with pytest.raises(FileNotFoundError, match="no completions there; grpo and the arms of .* with these settings have not begun"):
        show.groups(tmp_path / "empty", -1)


@pytest.mark.parametrize("words", [("completions", "--limit", "-3"), ("eval", "--wrong", "-3"), ("eval", "--wrong", "many")])
def test_a_number_below_zero_is_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["show", *words])
    assert f"argument {words[1]}: expected a whole number, 0 or more, found {words[2]!r}" in capsys.readouterr().err
