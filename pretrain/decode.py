"""One more token of each response, for Llamas on a CPU in fp32: what transformers' modules compute, without their overhead.

At a million parameters a step of a decode loop through the modules takes four times as long as its matrix products. Other models,
other data types and GPUs go through the modules.

Shapes: n responses, H hidden, h heads, k heads of keys and values, d size of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mathpipe.pretrain import fast_cpu
from mathpipe.pretrain.memory import Memory

FAMILIES = ("LlamaModel", "Qwen2Model")


def usable(body: Any) -> bool:
    """Whether `step` knows this model: its layers, its data type, and weights that lie here in one piece."""
    config = body.config
    plain = getattr(config, "hidden_act", "") == "silu" and not getattr(config, "use_sliding_window", False)
    weights = all(weight.numel() and fast_cpu.usable(weight) for weight in body.parameters())
    return type(body).__name__ in FAMILIES and plain and weights


def step(body: Any, ids_n: Tensor, positions_n: Tensor, memory: Memory) -> Tensor:
    """Last hidden states `[n, H]`; the memory takes up keys and values."""
    x_nH = body.embed_tokens(ids_n)
    cosine, sine = (table[0].contiguous() for table in body.rotary_emb(x_nH, positions_n[None]))
    for number, layer in enumerate(body.layers):
        attention, mlp = layer.self_attn, layer.mlp
        normed = norm(x_nH, layer.input_layernorm)
        parts = (linear(normed, part) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        query, key, value = (part.view(len(part), -1, attention.head_dim) for part in parts)
        rotate(query, cosine, sine)
        rotate(key, cosine, sine)
        out_nhd = memory.read(number, query, key, value, attention.scaling)
        x_nH += linear(out_nhd.flatten(1), attention.o_proj)
        normed = norm(x_nH, layer.post_attention_layernorm)
        gate, up = linear(normed, mlp.gate_proj), linear(normed, mlp.up_proj)
        fast_cpu.call("swiglu", gate, up, gate, *gate.shape)
        x_nH += linear(gate, mlp.down_proj)
    return norm(x_nH, body.norm)


def linear(x: Tensor, layer: Any) -> Tensor:
    """A linear layer."""
    return F.linear(x, layer.weight, layer.bias)


def norm(x: Tensor, layer: Any) -> Tensor:
    """RMSNorm."""
    y, inverse = torch.empty_like(x), x.new_empty(len(x))
    fast_cpu.call("rms_norm", x, layer.weight, y, inverse, *x.shape, layer.variance_epsilon)
    return y


def rotate(x_nhd: Tensor, cosine_nd: Tensor, sine_nd: Tensor) -> None:
    """Rotary positions of all heads, in place."""
    fast_cpu.call("rotate", x_nhd, x_nhd, cosine_nd, sine_nd, *x_nhd.shape, len(x_nhd), 1.0)
