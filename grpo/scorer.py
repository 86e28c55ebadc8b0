"""A language model's body with a head of one number: reward model (how good is what stands here) and PPO's value model.

In the transformers layout it is a token classifier with one label: `AutoModelForTokenClassification.from_pretrained` opens it.

Shapes: M response tokens of all outputs, one after another; H hidden.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification
from transformers.utils import logging

from mathpipe.grpo.packed import Packed, hidden
from mathpipe.pipeline.artifact import ContractError


class Scorer(nn.Module):
    """A token classifier with one label, `network`, as DeepSpeed wraps it here."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, packed: Packed, before: bool = False) -> Tensor:
        """A value for every response token, `[M]` in fp32.

        Args:
            before: the value of the state that predicts the token (PPO's critic); else of the state after it (reward models).
        """
        hidden_LH = hidden(self.network, packed)
        return head(self.network)(hidden_LH[packed.predict_M if before else packed.place_M]).squeeze(-1).float()


def head(network: Any) -> nn.Linear:
    """The linear layer from hidden states to the label: `score` or `classifier`. Its dropout is left out: a reward is one number."""
    (found,) = (child for child in network.children() if isinstance(child, nn.Linear))
    return found


def from_language_model(path: Path, dtype: torch.dtype = torch.float32) -> Scorer:
    """A scorer on the body of a causal language model. Its head is zero: every value is 0, every probability one half.

    Raises:
        ContractError: transformers finds no model there.
    """
    network = _open(path, dtype)
    nn.init.zeros_(head(network).weight)
    if head(network).bias is not None:
        nn.init.zeros_(head(network).bias)
    return Scorer(network)


def load(path: Path, dtype: torch.dtype = torch.float32) -> Scorer:
    """A trained scorer.

    Raises:
        ContractError: there is no token classifier with one label.
    """
    network = _open(path, dtype)
    found = network.config.architectures or ["nothing"]
    if not found[0].endswith("ForTokenClassification"):
        raise ContractError(f"{path}: holds a {found[0]}, not a token classifier; give what the stage reward_model made")
    return Scorer(network)


def _open(path: Path, dtype: torch.dtype) -> Any:
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # of a language model the head is new, which is no news
    try:
        return AutoModelForTokenClassification.from_pretrained(str(path), num_labels=1, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ContractError(f"{path}: no model there ({str(error).splitlines()[0]})") from error
    finally:
        logging.set_verbosity(before)
