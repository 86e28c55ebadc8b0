"""Engines: what prompts share changes no answer, stop strings end completions wherever tokens end, samples repeat."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mathpipe.eval import own_engine
from mathpipe.eval.generation import LoadedModel, VllmGenerator, choice_logprobs, cut, open_generator, pick_engine
from mathpipe.eval.own_engine import Ends, common, parts
from mathpipe.pretrain import fast_cpu
from mathpipe.pretrain import tokenizer as bpe

TEXT = "Q: What is the sum of 3 and 4?\nA: The sum is 7. The answer is 7.\n\nQ: And 数学? the end\n\n"
PROMPTS = [f"{TEXT * 2}Q: {rest}\nA:" for rest in ("one", "two and a longer one " * 3, "one", "")] + ["A", f"{TEXT} else", TEXT * 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random Llamas and a GPT-2 with one tokenizer, whose tokens are short."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = bpe.train([TEXT] * 3, 300)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    llama = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=1024, tie_word_embeddings=False, initializer_range=0.3, **ids,
    )  # fmt: skip
    gpt2 = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=1024, initializer_range=0.3, **ids)
    for name, kind, shape in (("a", LlamaForCausalLM, llama), ("b", LlamaForCausalLM, llama), ("gpt2", GPT2LMHeadModel, gpt2)):
        torch.manual_seed(ord(name[0]))
        model = kind(shape)
        with torch.no_grad():  # no broken characters
            model.lm_head.weight[[n for n in range(300) if "\ufffd" in tokenizer.decode([n])]] = 0
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def both(path: Path, batch_tokens: int = 2000) -> tuple[LoadedModel, Any, Any]:
    """Tokenizer, our engine and transformers' on a model of its own."""
    loaded = LoadedModel(path, "cpu")
    return loaded, open_generator("own", loaded, 1024, batch_tokens), open_generator("transformers", LoadedModel(path, "cpu"), 1024, 600)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("name", ["a", "gpt2"])
def test_answers_are_those_of_plain_transformers(folder: Path, name: str, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels:
        monkeypatch.setattr(fast_cpu, "usable", lambda *tensors: False)
    for batch_tokens in (2000, 200):
        loaded, ours, plain = both(folder / name, batch_tokens)
        prompts = [loaded.encode(text) for text in PROMPTS]
        choices = [[5], [6], [7, 8], [7, 9], [10, 11, 12]]  # one token, a shared first token, and three tokens
        found = torch.tensor(choice_logprobs(ours, prompts, choices))
        torch.testing.assert_close(found, torch.tensor(choice_logprobs(plain, prompts, choices)), atol=1e-4, rtol=0)
        for prompt, scores in zip(prompts[:2], found, strict=False):
            with torch.inference_mode():
                logp = plain.loaded.model(torch.tensor([prompt + choices[4]])).logits[0].log_softmax(-1)
            expected = sum(logp[len(prompt) - 1 + n, token] for n, token in enumerate(choices[4]))
            torch.testing.assert_close(scores[4], expected, atol=1e-4, rtol=0)
        for stop in ((), ("e", "数")):
            texts = ours.generate(prompts, 24, stop)
            assert texts == plain.generate(prompts, 24, stop) == [ours.generate([prompt], 24, stop)[0] for prompt in prompts]
            assert len({text for (text,) in texts}) > 3


def test_a_stop_string_ends_a_completion_wherever_tokens_end(folder: Path) -> None:
    """Every piece of a text as a stop string: it is seen with the token that completes it, and not before."""
    loaded = LoadedModel(folder / "a", "cpu")
    ids = loaded.encode(TEXT)
    texts = [loaded.decode(ids[:n]) for n in range(len(ids) + 1)]
    assert texts[-1] == TEXT and len(ids) < len(TEXT.encode()), "some tokens are longer than a byte"
    for first in range(len(TEXT)):
        for length in (1, 2, 5):
            stop = TEXT[first : first + length]
            needed = next(n for n, text in enumerate(texts) if stop in text)
            ends = Ends(loaded, ("never", stop), 3)
            seen = [bool(ends(torch.tensor([1]), torch.tensor([token]))) for token in ids[:needed]]
            assert seen == [False] * (needed - 1) + [True], stop


def test_a_stopped_completion_is_cut_and_costs_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, ours, _ = both(folder / "a")
    grown: list[Any] = []
    real = own_engine.grow
    monkeypatch.setattr(own_engine, "grow", lambda *given: grown.append(real(*given)) or grown[-1])
    prompts = [loaded.encode(text) for text in PROMPTS[:2]]
    whole = [text for (text,) in ours.generate(prompts, 30)]
    stop = whole[0][8:10]
    assert [text for (text,) in ours.generate(prompts, 30, (stop,))] == [cut(text, (stop,)) for text in whole]
    assert max(len(ids) for ids in grown[0].ids()) > min(len(ids) for ids in grown[1].ids())


def test_the_end_of_a_prompt_is_no_part_of_a_stop_string(folder: Path) -> None:
    loaded, ours, plain = both(folder / "a")
    prompts = [loaded.encode(text) for text in PROMPTS[:4]]
    for prompt, (whole,) in zip(prompts, ours.generate(prompts, 24), strict=True):
        stop = f"A:{whole[:2]}"
        assert stop not in whole and ours.generate([prompt], 24, (stop,)) == plain.generate([prompt], 24, (stop,)) == [[whole]]


def test_samples_repeat_whatever_else_is_asked_for(folder: Path) -> None:
    loaded, ours, plain = both(folder / "a")
    prompts = [loaded.encode(text) for text in PROMPTS[:3]]
    for engine in (ours, plain):
        found = engine.generate(prompts, 8, (), 5, 1.0, 0.9, [5, 6, 5])
        assert found[1] == engine.generate([prompts[1]], 8, (), 5, 1.0, 0.9, [6])[0]
        assert found[0] == found[2] and len(set(found[0])) > 1, "the same prompt and seed"
        assert engine.generate(prompts[:1], 8, (), 3, 1e-4, 1.0, [1])[0] == engine.generate(prompts[:1], 8, (), 3)[0]


PIECES = st.lists(st.integers(0, 2), min_size=1, max_size=40)


@given(st.lists(PIECES, min_size=1, max_size=12), st.integers(1, 200), st.integers(1, 6), st.booleans())
def test_parts_hold_every_prompt_once_and_rebuild_it(prompts: list[list[int]], batch_tokens: int, max_rows: int, share: bool) -> None:
    found = list(parts(prompts, batch_tokens, max_rows, lambda own: own, share))
    assert sorted(row for part in found for row in part.rows) == list(range(len(prompts)))
    for part in found:
        start = part.start()
        assert len(part.rows) <= max_rows and (len(start.ids_L) <= batch_tokens or len(part.rows) == 1)
        places = zip(start.prompt_N, start.prompt_tokens_N, start.own_N, start.own_tokens_N, start.last_N, strict=True)
        for row, (prompt, shared, own, count, last) in zip(part.rows, places, strict=True):
            ids = [*start.ids_L[prompt : prompt + shared].tolist(), *start.ids_L[own : own + count].tolist()]
            assert ids == prompts[row] and start.ids_L[last] == prompts[row][-1]
            assert start.positions_L[last] == len(prompts[row]) - 1
        assert len(start.ids_L) <= sum(len(prompts[row]) for row in part.rows)


@given(PIECES, PIECES)
def test_common_leaves_the_second_a_token(first: list[int], second: list[int]) -> None:
    shared = common(first, second)
    assert first[:shared] == second[:shared] and shared < len(second)
    assert shared in (len(first), len(second) - 1) or first[shared] != second[shared]


def test_few_shot_prompts_share_their_examples() -> None:
    shots = [[9] * 30 + [2] * 30, [9] * 30 + [3] * 30]
    prompts = [[*shots[n % 2], n, 100 + n] for n in range(8)]
    (part,) = parts(prompts, 1000, 100, lambda own: 0)
    assert [(len(group.rows), group.shared) for group in part.groups] == [(4, 60), (4, 60)]


def test_auto_is_our_own_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_engine("auto", "cpu") == "own"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert pick_engine("auto", "cuda") == "own"
    with pytest.raises(ValueError, match="not installed"):
        pick_engine("vllm", "cpu")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_exchanges_weights_and_agrees(folder: Path) -> None:
    models = [LoadedModel(folder / name, "cpu") for name in "ab"]
    engine = VllmGenerator(models[0], 512)
    prompts = [models[0].encode(text) for text in PROMPTS]
    choices = [[5], [6], [7, 8]]
    for loaded in (*models, models[0]):
        assert open_generator("vllm", loaded, 512, 2000, engine) is engine
        ours = open_generator("own", loaded, 512, 2000)
        expected = torch.tensor(choice_logprobs(ours, prompts, choices))
        torch.testing.assert_close(torch.tensor(choice_logprobs(engine, prompts, choices)), expected, atol=1e-3, rtol=0)
        assert engine.generate(prompts, 12, ("e",)) == ours.generate(prompts, 12, ("e",))
    found = engine.generate(prompts[:2], 8, (), 4, 1.0, 0.9, [5, 6])
    assert found[1] == engine.generate(prompts[1:2], 8, (), 4, 1.0, 0.9, [6])[0] and len(set(found[0])) > 1
