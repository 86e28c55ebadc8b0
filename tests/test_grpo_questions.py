"""Which questions are asked: an endless sequence that follows from the config, apart from the held-out ones."""

import pyarrow as pa
import pytest

from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.questions import Question, Questions, collect
from mathpipe.pipeline import artifact
from mathpipe.pipeline.artifact import ContractError
from mathpipe.sft import schema
from mathpipe.sft.schema import Example, Segment


def always(question):
    return True


def test_generated_questions_are_the_same_for_every_run_and_never_held_out():
    config = GrpoConfig(num_steps=5, questions_per_step=4, num_held_out=50, refill_rounds=1)
    found = collect(config, (12, 100), None, None, always)
    assert found == collect(config, (12, 100), None, None, always)
    assert len(found.training) == 40 and len(found.held_out) == 50, "a refill has questions of its own"
    assert not {one.question for one in found.training} & {one.question for one in found.held_out}
    first = [found.of_step(config, step, slot) for step in range(5) for slot in range(4)]
    assert first == list(found.training[:20])
    assert [found.of_step(config, 0, slot, attempt=1) for slot in range(4)] == list(found.training[20:24])


def test_later_passes_ask_everything_once_in_another_order():
    questions = Questions([Question(str(n), "") for n in range(50)], [], 0, seed=3)
    passes = [[questions.at(start + place) for place in range(50)] for start in (0, 50, 100)]
    assert passes[0] == questions.training and len({tuple(one) for one in map(tuple, passes)}) == 3
    assert all(sorted(one, key=lambda q: int(q.question)) == passes[0] for one in passes)


def test_too_long_questions_are_left_out_and_counted():
    config = GrpoConfig(num_steps=20, questions_per_step=4, num_held_out=10)
    found = collect(config, (12, 100), None, None, lambda question: "Tom" not in question)
    assert len(found.training) == 80 and found.num_too_long > 0 and not any("Tom" in one.question for one in found.training)
    with pytest.raises(ValueError, match="max_prompt_tokens 128 leaves out nearly every question"):
        collect(config, (12, 100), None, None, lambda question: False)


def test_questions_of_the_examples_are_cot_with_an_answer(tmp_path):
    def example(number, kind="cot", answer="7", source="gsm8k"):
        return Example(f"question {number}?", (Segment("text", r"\boxed{7}"),), answer, kind, source)

    examples = [example(n) for n in range(200)] + [example(300, "pot"), example(301, answer=""), example(302, source="math"), example(0)]
    rows = [schema.to_row(one, number, number, "") for number, one in enumerate(examples)]
    artifact.write_parquet(tmp_path / "data" / "a-00000.parquet", pa.Table.from_pylist(rows, schema=schema.SCHEMA))
    config = GrpoConfig(questions=("gsm8k",), num_held_out=5)
    found = collect(config, (0, 0), tmp_path, None, always)
    asked = {one.question for one in found.training}
    assert len(found.held_out) == 5 and not asked & {one.question for one in found.held_out}
    assert asked <= {f"question {n}?" for n in range(200)} and len(asked) == len(found.training) > 150
    with pytest.raises(ContractError, match="no examples of numina .there are: gsm8k, math."):
        collect(GrpoConfig(questions=("numina",)), (0, 0), tmp_path, None, always)
    with pytest.raises(ValueError, match="give --in examples=DIR"):
        collect(config, (0, 0), None, None, always)
