"""Log-probabilities of sampled responses.

Shapes: M tokens of all responses (packed.py), L tokens of prompts and responses, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mathpipe.grpo.packed import Packed, hidden
from mathpipe.pretrain.model import log_probs


class Policy(nn.Module):
    """A causal LM as DeepSpeed wraps it here: its forward returns log-probabilities of responses."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, packed: Packed, temperature_M: Tensor | None = None, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """log π of each response token at its trajectory's temperature (None: 1), and the entropy there, without gradient; fp32.

        The logits exist for one chunk of tokens at a time (loss.py).
        """
        hidden_MH = hidden(self.model, packed).index_select(0, packed.predict_M)
        entropy_M = torch.empty(len(hidden_MH), device=hidden_MH.device) if with_entropy else None
        logp_M = log_probs(hidden_MH, self.model.get_output_embeddings(), packed.target_M, temperature_M, entropy_M)
        return logp_M, entropy_M
