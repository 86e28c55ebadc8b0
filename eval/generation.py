"""Who answers for a model in the transformers layout: completions and log-probabilities of choices, from one of three engines.

`own` (own_engine.py) is our decode loop, which computes what prompts have in common once; `vllm` one engine for all models of a run
(their weights are exchanged); `transformers` its generate, prompt by prompt the plain way, to compare with.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from mathpipe.eval import models
from mathpipe.pretrain import tokenizer as tokenizers
from mathpipe.pretrain.model import load

Tokens = list[int]
ENGINES = ("auto", "own", "vllm", "transformers")

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
        models.require(path)
        self.path, self.device = path, device
        self.tokenizer = tokenizers.load(path)
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The weights, ready for inference."""
        if self._model is None:
            self._model = load(self.path, torch.float32 if self.device == "cpu" else torch.bfloat16).to(self.device).eval()
        return self._model

    @property
    def eos(self) -> tuple[int, ...]:
        """Tokens that end a completion."""
        found = self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        return (found,) if isinstance(found, int) else tuple(found or ())

    def encode(self, text: str) -> Tokens:
        """Token ids, with what the tokenizer puts before every text."""
        return tokenizers.encode_prompt(self.tokenizer, text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Their text, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)  # type: ignore[no-any-return]

    def num_positions(self) -> int:
        """Longest context the model has positions for."""
        return self.model.config.max_position_embeddings


class Generator(Protocol):
    """What the evaluation asks of an engine."""

    def next_logprobs(self, prompts: Sequence[Tokens], tokens: Sequence[int]) -> list[list[float]]:
        """log P(token | prompt) of each prompt and token."""

    def generate(
        self, prompts: Sequence[Tokens], max_new_tokens: int, stop: Sequence[str] = (), num_samples: int = 1, temperature: float = 0.0,
        top_p: float = 1.0, seeds: Sequence[int] | None = None,
    ) -> list[list[str]]:  # fmt: skip
        """`num_samples` completions of each prompt, each cut before the first stop string in its text.

        Args:
            temperature: 0 is greedy.
            seeds: of each prompt's samples; default its number. The same seed gives the same samples.
        """


def choice_logprobs(generator: Generator, prompts: Sequence[Tokens], choices: Sequence[Tokens]) -> list[list[float]]:
    """log P(choice | prompt), summed over the choice's tokens, for every prompt and choice.

    Choices that differ in their last token only (letters, usually of one token each) come from one pass.
    """
    wanted = {choice[:n]: None for choice in map(tuple, choices) for n in range(len(choice))}
    scores: dict[tuple[int, ...], list[float]] = {}
    for stem in wanted:
        tokens = sorted({choice[len(stem)] for choice in choices if len(choice) > len(stem) and tuple(choice[: len(stem)]) == stem})
        found = generator.next_logprobs([[*prompt, *stem] for prompt in prompts], tokens)
        scores |= {(*stem, token): list(column) for token, column in zip(tokens, zip(*found, strict=True), strict=True)}
    return [[sum(scores[tuple(choice[: n + 1])][row] for n in range(len(choice))) for choice in choices] for row in range(len(prompts))]


def pick_engine(wanted: str, device: str) -> str:
    """The engine for a config's setting. `auto`: on a CPU our own, which is the faster one there; on a GPU vLLM where it is installed.

    Raises:
        ValueError: vLLM is asked for and not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if wanted == "vllm" and not installed:
        raise ValueError('evaluate.engine is "vllm", which is not installed; install it or use engine = "own"')
    if wanted == "auto":
        return "vllm" if installed and device != "cpu" else "own"
    return wanted


def open_generator(engine: str, loaded: LoadedModel, max_context: int, batch_tokens: int, former: Generator | None = None) -> Generator:
    """An engine, of those that `pick_engine` names, for a model.

    Args:
        max_context: longest prompt and completion together.
        batch_tokens: tokens of one batch without vLLM.
        former: the generator of the model before; a vLLM engine takes over this model's weights where both have one shape.
    """
    if engine == "own":
        from mathpipe.eval.own_engine import OwnGenerator

        return OwnGenerator(loaded, batch_tokens)
    if engine == "transformers":
        return TransformersGenerator(loaded, batch_tokens)
    if isinstance(former, VllmGenerator) and former.fits(loaded, max_context):
        former.use(loaded)
        return former
    return VllmGenerator(loaded, max_context)


class VllmGenerator:
    """One vLLM engine for models of one shape: `use` exchanges the weights."""

    def __init__(self, loaded: LoadedModel, max_context: int) -> None:
        for name, value in VLLM_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        self.shape, self.max_context = _shape(loaded), max_context
        self.loaded = loaded
        self.llm = LLM(
            str(loaded.path), dtype="float32" if loaded.device == "cpu" else "bfloat16", seed=0, max_model_len=max_context,
            max_num_seqs=256, max_num_batched_tokens=max(8192, max_context), enforce_eager=loaded.device == "cpu",
            distributed_executor_backend="uni", disable_log_stats=True,
        )  # fmt: skip

    def fits(self, loaded: LoadedModel, max_context: int) -> bool:
        """Whether this engine can take over the other model's weights."""
        return self.shape == _shape(loaded) and self.max_context == max_context

    def use(self, loaded: LoadedModel) -> None:
        """Answer with this model from now on."""
        if loaded.path != self.loaded.path:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(loaded.path)})
            self.loaded = loaded

    def next_logprobs(self, prompts: Sequence[Tokens], tokens: Sequence[int]) -> list[list[float]]:
        from vllm import SamplingParams

        settings = SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=list(tokens), detokenize=False)
        found = [result.outputs[0].logprobs[0] for result in self._run(prompts, [settings] * len(prompts))]
        return [[logprobs[token].logprob for token in tokens] for logprobs in found]

    def generate(
        self, prompts: Sequence[Tokens], max_new_tokens: int, stop: Sequence[str] = (), num_samples: int = 1, temperature: float = 0.0,
        top_p: float = 1.0, seeds: Sequence[int] | None = None,
    ) -> list[list[str]]:  # fmt: skip
        from vllm import SamplingParams

        settings = [
            SamplingParams(
                n=num_samples, temperature=temperature, top_p=top_p, seed=(seed << 16) if temperature else None, max_tokens=max_new_tokens,
                stop=list(stop) or None,
            )
            for seed in seeds or range(len(prompts))
        ]  # fmt: skip
        decode = self.loaded.decode  # vLLM's own text leaves out a character that was cut in the middle
        return [[cut(decode(one.token_ids), stop) for one in result.outputs] for result in self._run(prompts, settings)]

    def _run(self, prompts: Sequence[Tokens], settings: list[Any]) -> list[Any]:
        from vllm import TokensPrompt

        self.llm.reset_prefix_cache()  # it may hold the former model's keys; and equal calls shall give equal answers
        return self.llm.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], settings, use_tqdm=False)


def _shape(loaded: LoadedModel) -> tuple[str, str]:
    """What two models must share to share an engine."""
    return (loaded.path / "config.json").read_text(encoding="utf-8"), (loaded.path / "tokenizer.json").read_text(encoding="utf-8")


class TransformersGenerator:
    """The model's own forward and generate, in batches of similar length, each prompt whole."""

    def __init__(self, loaded: LoadedModel, batch_tokens: int) -> None:
        self.loaded, self.batch_tokens = loaded, batch_tokens

    @torch.inference_mode()
    def next_logprobs(self, prompts: Sequence[Tokens], tokens: Sequence[int]) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in prompts]
        for rows, padded in self._batches(prompts, 0):
            positions = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
            logp = self.loaded.model(**padded, position_ids=positions, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
            for row, values in zip(rows, logp[:, list(tokens)].tolist(), strict=True):
                found[row] = values
        return found

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Tokens], max_new_tokens: int, stop: Sequence[str] = (), num_samples: int = 1, temperature: float = 0.0,
        top_p: float = 1.0, seeds: Sequence[int] | None = None,
    ) -> list[list[str]]:  # fmt: skip
        if temperature:
            asked = zip(prompts, seeds or range(len(prompts)), strict=True)
            draws = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0, "num_return_sequences": num_samples}
            return [self._complete([prompt], max_new_tokens, stop, seed, draws) for prompt, seed in asked]
        texts = iter(self._complete(prompts, max_new_tokens, stop, 0, {"do_sample": False}))
        return [[text] * num_samples for text in texts]

    def _complete(self, prompts: Sequence[Tokens], max_new_tokens: int, stop: Sequence[str], seed: int, draws: dict[str, Any]) -> list[str]:
        from mathpipe.eval.own_engine import Ends

        texts: dict[int, list[str]] = {}
        for rows, padded in self._batches(prompts, max_new_tokens):
            # not `stop_strings`: they are also found where the end of the prompt is a part of one
            ends = Ends(self.loaded, stop, len(rows) * draws.get("num_return_sequences", 1))
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                found = self.loaded.model.generate(
                    **padded, max_new_tokens=max_new_tokens, pad_token_id=self.loaded.tokenizer.pad_token_id,
                    stopping_criteria=[lambda ids, _, ends=ends, **__: ends(torch.arange(len(ids)), ids[:, -1]).to(ids.device)], **draws,
                )  # fmt: skip
            decoded = [cut(self.loaded.decode(tokens), stop) for tokens in found[:, padded["input_ids"].shape[1] :].tolist()]
            each = len(decoded) // len(rows)
            texts |= {row: decoded[n * each : (n + 1) * each] for n, row in enumerate(rows)}
        return [text for row in range(len(prompts)) for text in texts[row]]

    def _batches(self, prompts: Sequence[Tokens], new_tokens: int) -> Iterator[tuple[list[int], Any]]:
        """Rows and what the model takes for them, padded on the left."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for rows in batches(order, [len(prompt) + new_tokens for prompt in prompts], self.batch_tokens):
            given = {"input_ids": [prompts[i] for i in rows]}
            yield rows, self.loaded.tokenizer.pad(given, padding_side="left", return_tensors="pt").to(self.loaded.device)


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
