"""Byte-level BPE in the transformers layout: digits one by one, LaTeX and code kept as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mathpipe.pipeline.artifact import ContractError

EOS = "<|end|>"
PAD = "<|pad|>"
SPLIT = r"\p{N}| ?\\?\p{L}+| ?[^\s\p{L}\p{N}\\]+|\\|\s+(?!\S)|\s+"
"""Pre-tokens: one digit, a word or LaTeX command, a run of signs, white space (DeepSeek LLM also splits digits)."""
PROBE = "Let $x_1 = 12345$;\n\n\tdef f(x):  return \\frac{x}{2}  # 数学, naïve"
"""What two tokenizers of one vocabulary must cut alike."""


def train(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE without an unknown token: every string round-trips.

    Args:
        texts: training documents.
        vocab_size: size with EOS, PAD and the 256 bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS, PAD], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False)


def load(path: Path | str) -> Any:
    """Tokenizer of an artifact's `model/` or `tokenizer/` folder, or of a hub model; it has an EOS and a pad token.

    Raises:
        ContractError: nothing that transformers can open is there.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise ContractError(f"{path}: no tokenizer there ({str(error).splitlines()[0]})") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def require_same(start: str, vocabulary: Any, num_embeddings: int) -> None:
    """Raise ContractError unless the model `start` reads the tokens that `vocabulary` makes.

    Args:
        num_embeddings: rows of its embedding matrix; often there are more than tokens, which is no error.
    """
    own = load(start)
    if any(see(own) != see(vocabulary) for see in (lambda t: t.get_vocab(), lambda t: encode(t, PROBE), lambda t: t.eos_token_id)):
        sizes = f"its tokenizer of {len(own):,} tokens is not the one of {len(vocabulary):,} tokens at {vocabulary.name_or_path}"
        raise ContractError(f"{start}: {sizes}, which made the training data; set tokenizer.pretrained to the model's name")
    if num_embeddings < len(vocabulary):
        raise ContractError(f"{start}: {num_embeddings:,} embeddings for {len(vocabulary):,} tokens; take a model that has one for each")


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, no special tokens added."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Token ids of what a model goes on from: a text after what the tokenizer puts before every text (BOS in some)."""
    return tokenizer(text)["input_ids"]


def encoder(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    """A function from documents to their token ids, none added; what looks like a special token inside a document is text.

    Threads may share it: it works outside the interpreter's lock and leaves the tokenizer as it is.

    Raises:
        ContractError: a tokenizer in Python alone.
    """
    if not tokenizer.is_fast:
        raise ContractError(f"{tokenizer.name_or_path}: no tokenizer.json there; convert it to a fast tokenizer")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return lambda texts: [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def batched(texts: Iterable[str], max_chars: int) -> Iterator[str]:
    """Texts in order until `max_chars` characters have been given."""
    left = max_chars
    for text in texts:
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)
