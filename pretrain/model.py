"""The language model: a transformers Llama (untied embeddings, as DeepSeek's), and log-probabilities from it.

Shapes: B batch, T tokens, H hidden; N positions that count, flattened over the batch.
"""

from __future__ import annotations

import errno
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mathpipe.pipeline.artifact import ContractError
from mathpipe.pretrain import attention, fast_cpu, loss
from mathpipe.pretrain.config import PretrainConfig

MODEL = "model"
"""Folder of an artifact that transformers and vLLM open: weights, config, tokenizer."""


def build(config: PretrainConfig, vocab_size: int, eos: int, pad: int) -> nn.Module:
    """A fresh Llama with untied embeddings; initial weights follow from `config.seed`."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads, num_key_value_heads=config.num_heads,
            max_position_embeddings=config.max_position, initializer_range=config.initializer_range, tie_word_embeddings=False,
            bos_token_id=None, eos_token_id=eos, pad_token_id=pad,
        )
    )  # fmt: skip


def load(path: Path | str, dtype: torch.dtype = torch.float32) -> Any:
    """A causal LM in the transformers layout, from a folder or the hub.

    Raises:
        ContractError: transformers finds none there.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype)
    except (OSError, ValueError) as error:
        raise ContractError(f"{path}: no causal language model there ({str(error).splitlines()[0]})") from error


def require_context(path: Path | str, model: Any, context: int) -> None:
    """Raise ContractError unless the model at `path` has positions for `context` tokens."""
    longest = getattr(model.config, "max_position_embeddings", context)
    if context > longest:
        raise ContractError(f"{path}: reads {longest:,} tokens at most, fewer than context {context:,}; lower the context")


def save(model: Any, tokenizer: Any, out: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write weights (safetensors), config and tokenizer to `out/model`, atomically.

    Args:
        weights: those to write where the model's own are spread over processes (`optim.full_weights`).

    Raises:
        OSError: the disk is full; the model before stays.
    """
    partial = out / f".{MODEL}.tmp"
    try:
        model.save_pretrained(partial, state_dict=weights)
    except SafetensorError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, "the disk is full", str(out)) from error
        raise
    tokenizer.save_pretrained(partial)
    target = out / MODEL
    if target.exists():
        for file in target.iterdir():
            file.unlink()
        target.rmdir()
    partial.rename(target)


def log_probs(
    hidden_NH: Tensor, head: nn.Module, targets_N: Tensor, temperature_N: Tensor | None = None, entropy_N: Tensor | None = None
) -> Tensor:
    """log p(target) at N positions, `[N]` in fp32, each with a gradient of its own; logits exist for one chunk at a time.

    Args:
        hidden_NH: last hidden states of the positions that predict the targets.
        temperature_N: divides the logits of each position (its trajectory's own temperature); None is 1.
        entropy_N: takes the entropy of the distribution at each position, in nats.
    """
    rows = torch.arange(len(targets_N), device=hidden_NH.device)
    return -loss.nll(head, hidden_NH, rows, targets_N, temperature_N, in_forward=False, entropy_N=entropy_N)


class TokenLoss(nn.Module):
    """Summed negative log-likelihood of the labelled tokens of each row of a batch; what DeepSpeed wraps in pre-training and SFT."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: Tensor, labels_BT: Tensor, positions_BT: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """Sum over a row's labelled positions of -log p(label), `[B]` in fp32. Cheapest when the rows are summed with equal weights.

        Args:
            ids_BT: input tokens.
            labels_BT: the token itself where it counts, -100 elsewhere; position t is predicted from t - 1.
            positions_BT: rotary positions (restart at each packed example), default 0 … T-1.
            documents_BT: example number of each token; attention stays within an example. None: plain causal attention.
        """
        prepare(self.model, ids_BT.device)
        batch, length = ids_BT.shape
        following = F.pad(labels_BT[:, 1:], (0, 1), value=-100).flatten()
        row_N = torch.arange(batch, device=ids_BT.device).repeat_interleave(length)
        arguments: dict[str, Any] = {"position_ids": positions_BT}
        if documents_BT is not None:
            if positions_BT is None:
                positions_BT = torch.arange(length, device=ids_BT.device).expand(batch, length)
            kept, arguments = attention.flatten(documents_BT)
            ids_BT, following, row_N = ids_BT.flatten()[kept][None], following[kept], row_N[kept]
            arguments |= {"position_ids": positions_BT.flatten()[kept][None], "attention_mask": attention.no_mask(ids_BT)}
        hidden_BTH = self.model.base_model(input_ids=ids_BT, use_cache=False, **arguments).last_hidden_state
        counted = (following != -100).nonzero().squeeze(1)
        nll_N = loss.nll(self.model.get_output_embeddings(), hidden_BTH.flatten(0, 1), counted, following[counted])
        return torch.zeros(batch, device=ids_BT.device).index_add(0, row_N[counted], nll_N)


def prepare(model: Any, device: torch.device) -> None:
    """Give a transformers model, once, the attention and kernels for a device: parameters, their names and files stay as they are.

    On a GPU liger-kernel's norms, rotary positions and feed-forward where it is installed; on a CPU those of `fast_cpu`.
    """
    if getattr(model, "prepared_for", None) == device.type:
        return
    model.prepared_for = device.type
    model.set_attn_implementation(attention.NAME)
    if device.type == "cpu":
        fast_cpu.apply(model)
    elif importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
