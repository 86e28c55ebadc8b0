"""Public sets in exactly their published form become examples of one schema; what has not the form is a reject with its reason."""

from __future__ import annotations

import bz2
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_artifacts import SHARED, digests, finish, folder, needs_shared, rows

from mathpipe.corpus import decontaminate
from mathpipe.corpus.config import CleanExamplesConfig, CorpusInputs
from mathpipe.pipeline.config import build, to_table
from mathpipe.sft import collect, config, readers
from mathpipe.sft.config import ExamplesConfig, ExamplesInputs, ExampleSource
from mathpipe.sft.readers import READERS, Unusable
from mathpipe.sft.schema import load

METAMATH = {
    "query": "A shelf costs $40 and a lamp half as much. What do both cost?",
    "response": "The lamp costs $40 / 2 = $20.\nBoth cost $40 + $20 = $60.\n#### 60\nThe answer is: 60",
    "type": "GSM_Rephrased", "original_question": "A shelf costs $40, a lamp half of it. What do they cost?",
}  # fmt: skip
METAMATH_BOXED = {
    "query": "What is half of $\\sqrt{20}$?", "type": "MATH_AnsAug", "original_question": "What is half of $\\sqrt{20}$?",
    "response": "$\\sqrt{20}=2\\sqrt{5}$, so half of it is $\\boxed{\\sqrt{5}}$.\nThe answer is: \\sqrt{5}",
}  # fmt: skip
INSTRUCT_COT = {
    "source": "data/CoT/aqua_rat.json", "instruction": "How far is 3 + 4?\nAnswer Choices: (A) 7 (B) 8",
    "output": "3 + 4 = 7\nThe answer is A.",
}  # fmt: skip
INSTRUCT_POT = {
    "source": "data/PoT/TheoremQA.json", "instruction": "What is 2 to the power of 10? Let's write a Python program to solve it.",
    "output": "def solve():\n  return 2 ** 10\nprint(solve())",
}  # fmt: skip
TIR_ANSWER = "We compute it.\n\n```python\nfrom math import comb\nprint(comb(5, 3))\n```\n```output\n10\n```\nSo $\\boxed{10}$ groups."
NUMINA = {
    "source": "cn_k12", "problem": "Factor $x^2-1$.", "solution": "It is a difference of squares: $\\boxed{(x-1)(x+1)}$.",
    "messages": [{"content": "Factor $x^2-1$.", "role": "user"}, {"content": "…", "role": "assistant"}],
}  # fmt: skip
NUMINA_TIR = NUMINA | {"problem": "How many groups of three can five people make?", "solution": TIR_ANSWER}
TORA = {
    "dataset": "tora-corpus-math", "level": "Level 3", "id": "math-train-1-0", "gt": "10", "gt_cot": "It is $\\boxed{10}$.",
    "messages": [{"role": "user", "content": "Groups of three of five people?"}, {"role": "assistant", "content": TIR_ANSWER}],
}  # fmt: skip
GSM8K = {"question": "Half of 48 clips?", "answer": "It is 48/2 = <<48/2=24>>24 clips.\n#### 24"}
MATH = {"problem": "What is $1+1$?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{2}$."}


def segments(name, record):
    example = READERS[name].read(record)
    return example, [(s.kind, s.text) for s in example.segments]


def test_readers_of_the_config_are_those_that_exist():
    assert tuple(READERS) == config.READERS


def test_metamath_boxes_its_answer_and_states_it_once():
    example, parts = segments("metamath", METAMATH)
    assert parts == [("text", "The lamp costs $40 / 2 = $20.\nBoth cost $40 + $20 = $60.\nThe answer is: \\boxed{60}")]
    assert (example.answer, example.format, example.language) == ("60", "cot", "en")
    example, parts = segments("metamath", METAMATH_BOXED)
    assert example.answer == "\\sqrt{5}"
    assert parts[0][1].endswith("$\\boxed{\\sqrt{5}}$.\nThe answer is: \\boxed{\\sqrt{5}}")


def test_mathinstruct_programs_stand_alone_and_chains_box_the_choice():
    example, parts = segments("mathinstruct", INSTRUCT_POT)
    assert example.question == "What is 2 to the power of 10?"
    assert (example.format, example.answer, parts) == ("pot", "", [("code", INSTRUCT_POT["output"])])
    assert example.text == f" ```python\n{INSTRUCT_POT['output']}\n```"
    example, parts = segments("mathinstruct", INSTRUCT_COT)
    assert (example.format, example.answer, parts[0][1]) == ("cot", "A", "3 + 4 = 7\nThe answer is \\boxed{A}.")


@pytest.mark.parametrize(("name", "record"), [("numina", NUMINA_TIR), ("tora", TORA)])
def test_tool_integrated_answers_are_cut_at_their_blocks(name, record):
    example, parts = segments(name, record)
    assert [kind for kind, _ in parts] == ["text", "code", "output", "text"]
    assert (example.format, example.answer, parts[2][1]) == ("tir", "10", "10")
    assert example.text == " " + TIR_ANSWER.replace("\n\n```", "\n```")
    assert [text for text, learnt in example.pieces if not learnt] == ["\n10\n```\n"]


def test_answers_without_a_program_are_chains_of_thought():
    assert segments("numina", NUMINA)[0].format == "cot"
    assert segments("numina", NUMINA)[0].answer == "(x-1)(x+1)"
    plain = TORA | {"messages": [TORA["messages"][0], {"role": "assistant", "content": "$2^3 = 8$, hence $\\boxed{8}$."}], "gt": "8"}
    assert segments("tora", plain)[0].format == "cot"


def test_gsm8k_loses_its_calculator():
    example, parts = segments("gsm8k", GSM8K)
    assert parts == [("text", "It is 48/2 = 24 clips.\nThe answer is: \\boxed{24}")] and example.answer == "24"


def test_language_is_that_of_the_question():
    assert READERS["math"].read(MATH).language == "en"
    assert READERS["math"].read(MATH | {"problem": "计算 $1+1$ 等于多少？"}).language == "zh"
    assert READERS["math"].read(MATH | {"problem": "计算 $1+1$ 等于多少？"}).prompt.endswith("\\boxed{}中。\n\nAssistant:")


@pytest.mark.parametrize(("name", "record", "reason"), [
    ("math", {"problem": "What is $1+1$?", "answer": "2"}, "no text in solution"),
    ("numina", NUMINA | {"solution": "We prove it. QED"}, "no final answer"),
    ("numina", NUMINA_TIR | {"solution": "```python\nprint(1)\n```\nSo \\boxed{1}."}, "program without output"),
    ("numina", NUMINA_TIR | {"solution": "```output\n1\n```\nSo \\boxed{1}."}, "output without a program"),
    ("numina", NUMINA_TIR | {"solution": "```python\nprint(1)\n```\n```output\n1\n```"}, "no final answer"),
    ("numina", NUMINA_TIR | {"solution": "```python\nprint(1)\nSo \\boxed{1}."}, "block that does not end"),
    ("numina", NUMINA_TIR | {"solution": "```py\nprint(1)\n```\nSo \\boxed{1}."}, "block .* of another form"),
    ("numina", NUMINA | {"problem": "Half \ud800"}, "half a character"),
    ("metamath", METAMATH | {"response": "The answer is: {1"}, "not balanced"),
    ("gsm8k", GSM8K | {"answer": "It is 24."}, "no final answer"),
    ("tora", TORA | {"messages": [TORA["messages"][1]]}, "messages are not one"),
    ("metamath", METAMATH | {"query": None}, "no text in query"),
])  # fmt: skip
def test_what_is_no_example_has_a_reason(name, record, reason):
    with pytest.raises(Unusable, match=reason):
        READERS[name].read(record)


@pytest.mark.parametrize(("stated", "boxed"), [
    ("The answer is: 5\nThe answer is: 5", "The answer is: 5\nThe answer is: \\boxed{5}"),
    ("The answer is A, since the answer is 5.", "The answer is A, since the answer is \\boxed{5}."),
    ("#### 5 The answer is: 5", "The answer is: 5 The answer is: \\boxed{5}"),
    ("1 + 4\n####\nThe answer is: 5", "1 + 4\n####\nThe answer is: \\boxed{5}"),
])  # fmt: skip
def test_of_answers_stated_again_the_last_is_boxed(stated, boxed):
    assert readers.box_answer(stated) == (boxed, "5")


def test_lines_may_end_as_on_windows():
    example = READERS["numina"].read(NUMINA_TIR | {"solution": TIR_ANSWER.replace("\n", "\r\n")})
    assert example == READERS["numina"].read(NUMINA_TIR)


def test_what_is_boxed_is_found_in_nested_braces():
    assert readers.boxed(r"\boxed{1} or \boxed{\frac{1}{\sqrt{2}}} and {3}") == r"\frac{1}{\sqrt{2}}"
    assert readers.boxed(r"\boxed{\{1, 2\}}") == r"\{1, 2\}"
    assert readers.boxed(r"\boxed{1 \\}") == r"1 \\"
    assert readers.boxed(r"\boxed{3") is None and readers.boxed("none") is None


def write_files(path):
    """The same two records in every kind of file."""
    records = [GSM8K, GSM8K | {"question": "Half of 50 clips?"}]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    (path / "a.jsonl").write_bytes(lines)
    (path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (path / "c.json").write_text(json.dumps(records))
    (path / "d.jsonl.bz2").write_bytes(bz2.compress(lines))
    pq.write_table(pa.Table.from_pylist(records), path / "e.parquet")
    with pa.CompressedOutputStream(str(path / "f.jsonl.zst"), "zstd") as file:
        file.write(lines)


def examples(tmp_path, *sources, name="examples", **more):
    out = folder(tmp_path, name)
    settings = ExamplesConfig(sources=sources, num_examples=more.pop("num_examples", 0), **more)
    return finish(out, collect.run(settings, ExamplesInputs(), out))


def test_every_kind_of_file_is_read_and_repeats_are_rejected(tmp_path):
    write_files(tmp_path)
    out = examples(tmp_path, ExampleSource("gsm8k", path=f"{tmp_path}/[a-f].*"))
    assert [e.question for e in load(out)] == ["Half of 48 clips?", "Half of 50 clips?"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rejects"] == [{"source": "gsm8k", "reason": "duplicate", "count": 10}]
    assert manifest["examples"] == [{"source": "gsm8k", "format": "cot", "language": "en", "count": 2}]


def test_a_hub_data_set_is_streamed_with_its_subsets(tmp_path):
    """A local folder in the hub's layout: `load_dataset` reads it by the same path."""
    for subset in ("algebra", "geometry"):
        folder(tmp_path / "hub", subset)
        pq.write_table(pa.Table.from_pylist([MATH | {"problem": f"{subset}?"}]), tmp_path / "hub" / subset / "train-00000-of-00001.parquet")
    card = "".join(f"- config_name: {s}\n  data_files:\n  - split: train\n    path: {s}/train-*\n" for s in ("algebra", "geometry"))
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    source = ExampleSource("math", dataset=str(tmp_path / "hub"), subsets=("algebra", "geometry"))
    assert [e.question for e in load(examples(tmp_path, source))] == ["algebra?", "geometry?"]
    with pytest.raises(ValueError, match="nowhere.*cannot be read"):
        examples(tmp_path, ExampleSource("math", dataset=str(tmp_path / "nowhere")), name="other")


def test_a_file_of_another_set_says_which_fields_it_has(tmp_path):
    write_files(tmp_path)
    with pytest.raises(ValueError, match=r"c.json: not the set numina: fields question, answer; wanted problem, solution, messages"):
        examples(tmp_path, ExampleSource("numina", path=f"{tmp_path}/c.json"))
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(ValueError, match="broken.json: cannot be read"):
        examples(tmp_path, ExampleSource("numina", path=f"{tmp_path}/broken.json"))
    with pytest.raises(ValueError, match="none.jsonl: no such file"):
        examples(tmp_path, ExampleSource("numina", path=f"{tmp_path}/none.jsonl"))


def test_single_bad_records_are_rejects(tmp_path):
    lines = [json.dumps(GSM8K), "{half", json.dumps([1]), json.dumps({"question": "Q?"}), json.dumps(GSM8K | {"answer": "no"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    out = examples(tmp_path, ExampleSource("gsm8k", path=f"{tmp_path}/a.jsonl"))
    assert [(row["url"], row["reason"]) for row in rows(out, "rejects")] == [
        ("examples://gsm8k/1", "not a JSON object"), ("examples://gsm8k/2", "not a JSON object"),
        ("examples://gsm8k/3", "no field answer"), ("examples://gsm8k/4", "no final answer"),
    ]  # fmt: skip
    assert len(rows(out)) == 1


def test_equal_examples_go_and_other_solutions_stay(tmp_path):
    same = METAMATH | {"query": METAMATH["query"].upper() + "  "}
    other = METAMATH | {"response": "60 in all.\nThe answer is: 60"}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (METAMATH, same, other)))
    out = examples(tmp_path, ExampleSource("metamath", path=f"{tmp_path}/a.jsonl"))
    assert [row["url"] for row in rows(out)] == ["examples://metamath/0", "examples://metamath/2"]
    assert json.loads((out / "manifest.json").read_text())["num_questions"] == 1


def test_programs_are_verified_and_give_their_answers(tmp_path):
    wrong = NUMINA_TIR | {"solution": TIR_ANSWER.replace("\n10\n", "\n11\n")}
    broken = INSTRUCT_POT | {"output": "print(1/0)"}
    (tmp_path / "n.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (NUMINA_TIR, wrong)))
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (INSTRUCT_POT, broken, INSTRUCT_COT)))
    sources = [ExampleSource("numina", path=f"{tmp_path}/n.jsonl"), ExampleSource("mathinstruct", path=f"{tmp_path}/i.jsonl")]
    out = examples(tmp_path, *sources)
    assert [(row["source"], row["answer"], row["verified"]) for row in rows(out)] == [
        ("numina", "10", "ok"), ("mathinstruct", "1024", "ok"), ("mathinstruct", "A", ""),
    ]  # fmt: skip
    assert [(row["reason"], row["detail"]) for row in rows(out, "rejects")] == [
        ("wrong output", "10"), ("error", "ZeroDivisionError: division by zero"),
    ]  # fmt: skip
    kept = examples(tmp_path, *sources, name="kept", verify="keep")
    assert [row["verified"] for row in rows(kept)] == ["ok", "wrong output", "ok", "error", ""]
    off = examples(tmp_path, *sources, name="off", verify="off")
    assert [row["verified"] for row in rows(off)] == [""] * 5


def test_a_killed_stage_ends_as_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "CHUNK", 3)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(GSM8K | {"question": f"{n % 7}?"}) + "\n" for n in range(14)))
    source = ExampleSource("gsm8k", path=f"{tmp_path}/a.jsonl")
    more = {"num_examples": 5, "cot_frac": 1.0, "pot_frac": 0.0, "tir_frac": 0.0}
    whole = examples(tmp_path, source, name="whole", **more)
    write, calls = collect.artifact.write_parquet, []

    def killed(path, table):
        calls.append(path)
        if len(calls) == 6:  # rejects of the third chunk are written, its data are not
            raise KeyboardInterrupt
        write(path, table)

    monkeypatch.setattr(collect.artifact, "write_parquet", killed)
    with pytest.raises(KeyboardInterrupt):
        examples(tmp_path, source, name="killed", **more)
    monkeypatch.setattr(collect.artifact, "write_parquet", write)
    assert digests(examples(tmp_path, source, name="killed", **more), "data", "rejects") == digests(whole, "data", "rejects")


def test_config_takes_sources_from_toml():
    table = {"sources": [{"reader": "gsm8k", "dataset": "openai/gsm8k", "subsets": ["main"], "limit": 10}], "num_examples": 0}
    made = build(ExamplesConfig, table, "[examples]")
    assert made.sources == (ExampleSource("gsm8k", dataset="openai/gsm8k", subsets=("main",), limit=10),)
    assert build(ExamplesConfig, to_table(made), "[examples]") == made
    with pytest.raises(ValueError, match="did you mean 'numina'"):
        ExampleSource("nomina", path="x")
    with pytest.raises(ValueError, match="either path or dataset"):
        ExampleSource("gsm8k")
    with pytest.raises(ValueError, match="num_examples"):
        ExamplesConfig(num_examples=0)
    with pytest.raises(ValueError, match="max_result must be at least 0, found -1"):  # no problem would ever be found
        ExamplesConfig(max_result=-1)


@needs_shared
def test_test_questions_of_a_benchmark_are_removed_and_training_questions_stay(tmp_path):
    """A GSM8K test question planted among the training questions goes, and loading leaves it out; nothing else does."""
    gsm8k = SHARED / "data" / "benchmarks" / "gsm8k"
    train, test = ([json.loads(line) for line in (gsm8k / f"{split}.jsonl").read_text().splitlines()[:50]] for split in ("train", "test"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*train, test[7]]))
    out = examples(tmp_path, ExampleSource("gsm8k", path=f"{tmp_path}/a.jsonl"))
    texts = [
        {"benchmark": "gsm8k", "split": split, "item": str(n), "text": row["question"], "whole": True}
        for split, items in (("train", train), ("test", test))
        for n, row in enumerate(items)
    ]
    pq.write_table(pa.Table.from_pylist(texts), folder(tmp_path / "benchmarks", "data") / "texts.parquet")
    clean = folder(tmp_path, "clean")
    finish(clean, decontaminate.run(CleanExamplesConfig(), CorpusInputs(pages=out, benchmarks=tmp_path / "benchmarks"), clean))
    questions = [e.question for e in load(out, clean)]
    assert questions == [row["question"] for row in train]
    assert len(list(load(out))) == 51
