"""Groups: ladder of temperatures, prompt variants, near-duplicates drawn again; all decided by seeds."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.groups import cells, fits, near_duplicates, prompts, sample_groups
from mathpipe.grpo.sampler import Response
from mathpipe.pretrain.tokenizer import encode, train
from mathpipe.sft.prompts import render

QUESTIONS = ["Tom has 3 pens and gets 4. How many?", "Ana has 7 eggs and eats 2. How many?"]
HINT = "Think of the units."


@pytest.fixture(scope="module")
def tokenizer():
    return train([render(f"{HINT} {question}") for question in QUESTIONS] + ["12+5=17 3*4=12"], 300)


@dataclass
class Script:
    """A sampler whose texts are a function of seed and number of the sample: `choices` sums."""

    tokenizer: object
    choices: int
    asked: list = field(default_factory=list)

    def sample(self, requests, max_new_tokens, with_logp=True):
        self.asked.append(list(requests))
        return [[self.respond(one, one.seed + number) for number in range(one.num_samples)] for one in requests]

    def respond(self, request, noise):
        first = noise % self.choices
        text = f"{first}+{first + 1}={2 * first + 1} so it is {2 * first + 1}"
        return Response(tuple(encode(self.tokenizer, text)), (), True, request.temperature, request.prompt)


def test_samples_are_spread_over_temperatures_and_variants(tokenizer):
    config = GrpoConfig(group_size=8, temperatures=(0.6, 1.2), prompt_variants=("", HINT), top_p=0.9)
    script = Script(tokenizer, 1000)
    first, second = sample_groups(config, script, tokenizer, QUESTIONS, [1, 2])
    assert [one.temperature for one in first.responses] == [0.6] * 4 + [1.2] * 4
    plain, hinted = (tuple(encode(tokenizer, render(text))) for text in (QUESTIONS[1], f"{HINT} {QUESTIONS[1]}"))
    assert [one.prompt for one in second.responses] == [plain] * 2 + [hinted] * 2 + [plain] * 2 + [hinted] * 2
    assert [tokenizer.decode(one.ids) for one in first.responses] == first.texts
    ((*requests,),) = script.asked
    assert {(one.num_samples, one.top_p) for one in requests} == {(2, 0.9)}
    assert len({one.seed for one in requests}) == 8, "cells and questions draw different noise"


@given(st.integers(1, 70), st.integers(1, 5), st.integers(1, 4))
def test_every_cell_gets_its_even_share(size, rungs, variants):
    config = GrpoConfig(
        group_size=size * rungs * variants, temperatures=tuple(0.5 + 0.1 * n for n in range(rungs)),
        prompt_variants=tuple("x" * n for n in range(variants)),
    )  # fmt: skip
    found = cells(config)
    assert len(set(found)) == rungs * variants and all(found.count(cell) == size for cell in set(found))


def test_a_group_without_a_sample_for_every_cell_is_refused():
    with pytest.raises(ValueError, match="group_size 4 is too small for 6 pairs of temperatures and prompt_variants"):
        GrpoConfig(group_size=4, temperatures=(0.6, 0.8, 1.0), prompt_variants=("", HINT))


def test_a_group_depends_on_its_seed_alone(tokenizer):
    config = GrpoConfig(group_size=8, temperatures=(0.6, 1.2), duplicate_jaccard=0.9)
    both = sample_groups(config, Script(tokenizer, 12), tokenizer, QUESTIONS, [1, 2])
    (alone,) = sample_groups(config, Script(tokenizer, 12), tokenizer, QUESTIONS[1:], [2])
    (other,) = sample_groups(config, Script(tokenizer, 12), tokenizer, QUESTIONS[1:], [3])
    assert alone == both[1] != other


def test_duplicates_are_drawn_again_until_none_is_left(tokenizer):
    script = Script(tokenizer, 30)
    config = GrpoConfig(group_size=16, duplicate_jaccard=0.9, resample_rounds=8)
    (kept,) = sample_groups(GrpoConfig(group_size=16), Script(tokenizer, 30), tokenizer, QUESTIONS[:1], [7])
    (group,) = sample_groups(config, script, tokenizer, QUESTIONS[:1], [7])
    assert len(set(kept.texts)) == 16, "16 consecutive seeds of 30 texts: the script draws no duplicate at first"
    assert group == kept and len(script.asked) == 1
    script = Script(tokenizer, 9)
    config = GrpoConfig(group_size=8, temperatures=(0.6, 1.2), duplicate_jaccard=0.9, resample_rounds=20)
    (group,) = sample_groups(config, script, tokenizer, QUESTIONS[:1], [7])
    assert group.num_duplicates == 0 and len(set(group.texts)) == 8 and 1 < len(script.asked) < 21
    assert [one.temperature for one in group.responses] == [0.6] * 4 + [1.2] * 4, "drawn again at its own temperature"
    wanted = [sum(one.num_samples for one in requests) for requests in script.asked]
    assert wanted == sorted(wanted, reverse=True), "what was kept stays"


def test_rounds_are_bounded_and_what_is_left_is_counted(tokenizer):
    script = Script(tokenizer, 3)
    (group,) = sample_groups(GrpoConfig(group_size=8, duplicate_jaccard=0.9), script, tokenizer, QUESTIONS[:1], [7])
    assert len(script.asked) == 3  # 1 and the 2 rounds of the default
    assert group.num_duplicates == 5 and len(group.responses) == 8
    (kept,) = sample_groups(GrpoConfig(group_size=8), Script(tokenizer, 3), tokenizer, QUESTIONS[:1], [7])
    assert kept.num_duplicates == 0, "not looked for"


def test_near_duplicates_are_those_above_the_jaccard_index():
    """Twelve words have 10 three-grams; another last word leaves 9 of 11, an index of 0.82."""
    text = "one two three four five six seven eight nine ten eleven twelve"
    close = text.replace("twelve", "dozen")
    assert near_duplicates([text, close, text], 0.95) == [2]
    assert near_duplicates([text, close, "a b c d e f g h"], 0.5) == [1]
    assert near_duplicates([text, text, text], 0.95, last=[0]) == [0, 2]
    assert near_duplicates(["", "", "7"], 0.9) == [1]


def test_a_prompt_that_is_too_long_is_refused(tokenizer):
    config = GrpoConfig(prompt_variants=("", HINT))
    lengths = [len(one) for one in prompts(config, tokenizer, QUESTIONS[0])]
    assert lengths[0] < lengths[1]
    config = GrpoConfig(prompt_variants=("", HINT), max_prompt_tokens=lengths[1] - 1)
    assert not fits(config, tokenizer, QUESTIONS[0])
    assert fits(GrpoConfig(max_prompt_tokens=lengths[0]), tokenizer, QUESTIONS[0])
    with pytest.raises(ValueError, match=f"a prompt has {lengths[1]} tokens, grpo.max_prompt_tokens allows"):
        sample_groups(config, Script(tokenizer, 3), tokenizer, QUESTIONS[:1], [7])
