"""Greedy completions and choice log-probabilities of a model in the transformers layout.

vLLM generates where it is installed: it shares the prompt prefixes of a task and batches by itself, and one engine serves
all models of a run (their weights are exchanged). transformers' generate is the fallback. Log-probabilities of choices
need one forward pass over the end of each prompt, the common beginning is computed once; that is plain torch.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from mathpipe.pipeline.artifact import ContractError
from mathpipe.pretrain import tokenizer as tokenizers
from mathpipe.pretrain.model import load

Tokens = list[int]

VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process: it starts in seconds and takes weights by reference
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several processes may share the cores
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",  # every reload warns of the rotary embedding, which has no weights
}


class LoadedModel:
    """A model folder: tokenizer, and weights on first use (vLLM reads its own)."""

    def __init__(self, path: Path, device: str) -> None:
        if not (path / "config.json").is_file():
            raise ContractError(f"{path}: no model there (config.json is missing); run the stage that makes it again")
        self.path, self.device = path, device
        self.tokenizer = tokenizers.load(path)
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The weights, ready for inference."""
        if self._model is None:
            self._model = load(self.path, torch.float32 if self.device == "cpu" else torch.bfloat16).to(self.device).eval()
        return self._model

    def encode(self, text: str) -> Tokens:
        """Token ids, with what the tokenizer puts before every text."""
        return tokenizers.encode_prompt(self.tokenizer, text)

    def num_positions(self) -> int:
        """Longest context the model has positions for."""
        return self.model.config.max_position_embeddings


def pick_engine(wanted: str) -> str:
    """`vllm` or `transformers` for a config's engine setting.

    Raises:
        ValueError: vLLM is asked for and not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if wanted == "vllm" and not installed:
        raise ValueError('evaluate.engine is "vllm", which is not installed; install it or use engine = "transformers"')
    return "vllm" if installed and wanted != "transformers" else "transformers"


class VllmEngine:
    """One vLLM engine for models of one shape: `use` exchanges the weights."""

    def __init__(self, loaded: LoadedModel, max_context: int) -> None:
        for name, value in VLLM_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        self.shape, self.max_context = _shape(loaded), max_context
        self.loaded = loaded
        self.llm = LLM(
            str(loaded.path), dtype="float32" if loaded.device == "cpu" else "bfloat16", seed=0, max_model_len=max_context,
            max_num_seqs=256, max_num_batched_tokens=8192, enforce_eager=True, distributed_executor_backend="uni", disable_log_stats=True,
        )  # fmt: skip

    def fits(self, loaded: LoadedModel, max_context: int) -> bool:
        """Whether this engine can take over the other model's weights."""
        return self.shape == _shape(loaded) and self.max_context == max_context

    def use(self, loaded: LoadedModel) -> None:
        """Generate with this model from now on."""
        if loaded.path != self.loaded.path:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(loaded.path)})
            self.loaded = loaded

    def generate(self, prompts: Sequence[Tokens], max_new_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Greedy completions, without the stop string that ended them."""
        from vllm import SamplingParams, TokensPrompt

        self.llm.reset_prefix_cache()  # it may hold the former model's keys; and equal calls shall give equal answers
        settings = SamplingParams(temperature=0.0, max_tokens=max_new_tokens, stop=list(stop) or None)
        results = self.llm.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], settings, use_tqdm=False)
        decode = self.loaded.tokenizer.decode  # vLLM's own text leaves out a character that was cut in the middle
        return [cut(decode(list(result.outputs[0].token_ids), skip_special_tokens=True), stop) for result in results]


def _shape(loaded: LoadedModel) -> tuple[str, str]:
    """What two models must share to share an engine."""
    return (loaded.path / "config.json").read_text(encoding="utf-8"), (loaded.path / "tokenizer.json").read_text(encoding="utf-8")


def generate_transformers(
    loaded: LoadedModel, prompts: Sequence[Tokens], max_new_tokens: int, stop: Sequence[str], batch_tokens: int
) -> list[str]:
    """Greedy completions by transformers' generate, in batches of similar length."""
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for rows in batches(order, [len(prompt) + max_new_tokens for prompt in prompts], batch_tokens):
        padded = loaded.tokenizer.pad({"input_ids": [prompts[i] for i in rows]}, padding_side="left", return_tensors="pt").to(loaded.device)
        with torch.inference_mode():
            found = loaded.model.generate(
                **padded, max_new_tokens=max_new_tokens, do_sample=False, stop_strings=list(stop) or None, tokenizer=loaded.tokenizer,
                pad_token_id=loaded.tokenizer.pad_token_id,
            )  # fmt: skip
        for row, tokens in zip(rows, found[:, padded["input_ids"].shape[1] :].tolist(), strict=True):
            texts[row] = cut(loaded.tokenizer.decode(tokens, skip_special_tokens=True), stop)
    return texts


def cut(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string.

    >>> cut("So the answer is Q.\\n\\nQ: next", ["\\n\\nQ:"])
    'So the answer is Q.'
    """
    return text[: min((text.index(s) for s in stop if s in text), default=len(text))]


def batches(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """`order` in runs whose padded size stays within `batch_tokens` (a run has at least one).

    >>> list(batches([0, 1, 2], [4, 5, 9], 10))
    [[0, 1], [2]]
    """
    batch: list[int] = []
    for index in order:
        longest = max([lengths[i] for i in batch] + [lengths[index]])
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def common_prefix(prompts: Sequence[Tokens]) -> int:
    """How many tokens all prompts begin with, leaving each at least one of its own.

    >>> common_prefix([[1, 2, 3, 4], [1, 2, 5]]), common_prefix([[1, 2]])
    (2, 1)
    """
    limit = min(len(prompt) for prompt in prompts) - 1
    same = (len(set(tokens)) == 1 for tokens in islice(zip(*prompts, strict=False), limit))
    return next((i for i, equal in enumerate(same) if not equal), limit)


@torch.inference_mode()
def choice_logprobs(model: Any, prompts: Sequence[Tokens], choices: Sequence[Tokens], batch_tokens: int) -> list[list[float]]:
    """log P(choice | prompt), summed over the choice's tokens, for every prompt and choice.

    The tokens all prompts begin with are computed once. Choices that differ in their last token only (usually letters, of
    one token each) come from one pass. Padding stands on the right, where a causal model's earlier positions ignore it, and
    only the wanted positions reach the output layer.
    """
    shared = common_prefix(prompts)
    stems = sorted({tuple(choice[:-1]) for choice in choices})
    cache = _prefix_cache(model, prompts[0][:shared]) if shared else None
    scores = [[0.0] * len(choices) for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for rows in batches(order, [len(prompt) for prompt in prompts], batch_tokens):
        for stem in stems:
            wanted = [c for c, choice in enumerate(choices) if tuple(choice[:-1]) == stem]
            logp = _last_logprobs(model, cache, shared, [[*prompts[i][shared:], *stem] for i in rows], len(stem) + 1)  # B, S, V
            before = sum((logp[:, k, token] for k, token in enumerate(stem)), start=torch.zeros(len(rows), device=logp.device))
            for c in wanted:
                for row, value in zip(rows, (before + logp[:, -1, choices[c][-1]]).tolist(), strict=True):
                    scores[row][c] = value
    return scores


def _prefix_cache(model: Any, prefix: Tokens) -> list[tuple[Any, Any]]:
    """Keys and values of every layer for one sequence."""
    cache: Any = DynamicCache()
    model.base_model(input_ids=torch.tensor([prefix], device=model.device), past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _last_logprobs(model: Any, prefix: Any, num_prefix: int, tails: list[Tokens], num_last: int) -> torch.Tensor:
    """Log-probabilities after each of the last `num_last` tokens of every tail, shape (B, num_last, V)."""
    lengths = torch.tensor([len(tail) for tail in tails])
    ids = torch.zeros(len(tails), int(lengths.max()), dtype=torch.long)
    for row, tail in enumerate(tails):
        ids[row, : len(tail)] = torch.tensor(tail)
    cache = DynamicCache()
    for number, (keys, values) in enumerate(prefix or []):
        cache.update(keys.expand(len(tails), -1, -1, -1), values.expand(len(tails), -1, -1, -1), number)
    positions = torch.arange(num_prefix, num_prefix + ids.shape[1]).unsqueeze(0)
    hidden = model.base_model(
        input_ids=ids.to(model.device), past_key_values=cache, position_ids=positions.to(model.device), use_cache=True
    ).last_hidden_state  # fmt: skip
    last = (lengths[:, None] - num_last + torch.arange(num_last)[None, :]).to(model.device)  # B, S
    picked = hidden.gather(1, last[:, :, None].expand(-1, -1, hidden.shape[-1]))
    return model.get_output_embeddings()(picked).float().log_softmax(-1)
