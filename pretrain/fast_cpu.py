"""Fast CPU training: the element-wise parts of a Llama layer and of the loss as C kernels (`fast_cpu.c`), fp32.

`apply` gives the norms, linear, feed-forward and attention modules of a transformers model forwards that use them; parameters, their
names and what is saved stay as they are. The kernels are compiled once per machine (half a second) by the system's C compiler.
Without one, on a GPU, or for other data types or architectures, transformers' own forwards run.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mathpipe.pipeline import log

FLAGS = (
    "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math",
    "-freciprocal-math", "-shared", "-fPIC",
)  # fmt: skip
OPENBLAS_ROWS = 200
"""Below so many rows MKL is the faster one."""
PARTS = 16
"""Partial sums of a norm's weight gradient: as many threads can share in it."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where there is no C compiler that can."""
    source = Path(__file__).with_suffix(".c").read_text(encoding="utf-8")
    cpu = next((line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("flags")), platform.machine())
    name = hashlib.sha256("\n".join([source, cpu, *FLAGS]).encode()).hexdigest()[:16]
    file = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mathpipe" / f"fast_cpu-{name}.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    try:
        if not file.exists():
            if compiler is None:
                raise OSError("no C compiler (cc) in PATH")
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:
                made = Path(folder) / "made.so"
                command = [compiler, *FLAGS, "-x", "c", "-", "-o", str(made), "-lm"]
                subprocess.run(command, input=source, check=True, capture_output=True, text=True)
                made.replace(file)
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        log.logger().warning("training on a CPU without the fast kernels, about a fifth slower: %s", detail)
        return None


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""


@functools.cache
def prefers_openblas() -> bool:
    """Whether numpy's OpenBLAS multiplies faster than torch's MKL: on an AMD CPU without AVX-512 by an eighth (not xᵀ @ y)."""
    cpu = _read("/proc/cpuinfo")
    return "AuthenticAMD" in cpu and "avx512f" not in cpu


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of matrices, without a gradient."""
    if len(a) < OPENBLAS_ROWS or not (prefers_openblas() and usable(a, b)):
        return a @ b
    out = a.new_empty(a.shape[0], b.shape[1])
    np.matmul(a.detach().numpy(), b.detach().numpy(), out=out.numpy())
    return out


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels can take these tensors."""
    return all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors) and library() is not None


def call(name: str, *arguments: Tensor | None | int | float) -> None:
    """Run a kernel; tensors are passed by address and must be contiguous."""
    converted: list[Any] = []
    for value in arguments:
        if isinstance(value, Tensor):
            assert value.is_contiguous(), name
            converted.append(ctypes.c_void_p(value.data_ptr()))
        else:
            converted.append(ctypes.c_float(value) if isinstance(value, float) else value if value is None else ctypes.c_long(value))
    loaded = library()
    assert loaded is not None
    getattr(loaded, name)(*converted)


class RmsNorm(torch.autograd.Function):
    """x / rms(x) · weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        y, inverse = torch.empty_like(x), x.new_empty(x.shape[:-1])
        call("rms_norm", x, weight, y, inverse, inverse.numel(), x.shape[-1], eps)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, inverse = ctx.saved_tensors
        dx, parts = torch.empty_like(x), x.new_empty(PARTS, x.shape[-1])
        call("rms_norm_backward", dy.contiguous(), x, weight, inverse, dx, parts, inverse.numel(), x.shape[-1], PARTS)
        return dx, parts.sum(0), None


class SwiGlu(torch.autograd.Function):
    """silu(gate) · up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        call("swiglu", gate, up, out, gate.numel() // gate.shape[-1], gate.shape[-1])
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        call("swiglu_backward", dout.contiguous(), gate, up, dgate, dup, gate.numel() // gate.shape[-1], gate.shape[-1])
        return dgate, dup


class Rotate(torch.autograd.Function):
    """Rotary positions of x `[B, T, heads, size]` from tables `[B or 1, T, size]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        cosine, sine = cosine.contiguous(), sine.contiguous()
        ctx.save_for_backward(cosine, sine)
        return Rotate.turn(x, cosine, sine, 1.0)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cosine, sine = ctx.saved_tensors
        return Rotate.turn(dy, cosine, sine, -1.0), None, None

    @staticmethod
    def turn(x: Tensor, cosine: Tensor, sine: Tensor, sign: float) -> Tensor:
        x = x.contiguous()
        batch, length, heads, size = x.shape
        out = torch.empty_like(x)
        call("rotate", x, out, cosine, sine, batch * length, heads, size, cosine.numel() // size, sign)
        return out


class Linear(torch.autograd.Function):
    """x @ weightᵀ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return matmul(x.flatten(0, -2), weight.T).view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        dy_NO = dy.flatten(0, -2)
        dx = matmul(dy_NO, weight).view(x.shape) if ctx.needs_input_grad[0] else None
        return dx, dy_NO.T @ x.flatten(0, -2)


def linear_forward(self: Any, input: Tensor) -> Tensor:
    """A linear layer's forward."""
    if not (self.bias is None and input.ndim > 1 and prefers_openblas() and usable(input, self.weight)):
        return type(self).forward(self, input)
    return Linear.apply(input, self.weight)  # type: ignore[no-any-return]


def norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    """RMSNorm's forward."""
    if not usable(hidden_states, self.weight):
        return type(self).forward(self, hidden_states)
    return RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-any-return]


def mlp_forward(self: Any, x: Tensor) -> Tensor:
    """Feed-forward's forward."""
    if not usable(x):
        return type(self).forward(self, x)
    return self.down_proj(SwiGlu.apply(self.gate_proj(x), self.up_proj(x)))


def attention_forward(
    self: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], attention_mask: Tensor | None = None,
    past_key_values: Any = None, **kwargs: Any,
) -> tuple[Tensor, Any]:  # fmt: skip
    """Attention's forward, as transformers' with other rotary positions."""
    if not usable(hidden_states, *position_embeddings):
        return type(self).forward(self, hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
    shape = (*hidden_states.shape[:-1], -1, self.head_dim)
    query = Rotate.apply(self.q_proj(hidden_states).view(shape), *position_embeddings).transpose(1, 2)
    key = Rotate.apply(self.k_proj(hidden_states).view(shape), *position_embeddings).transpose(1, 2)
    value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, self.layer_idx)
    attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
    dropout = self.attention_dropout if self.training else 0.0
    out, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
    return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), weights


FORWARDS: dict[str, Any] = {
    "LlamaRMSNorm": norm_forward, "LlamaMLP": mlp_forward, "LlamaAttention": attention_forward,
    "Qwen2RMSNorm": norm_forward, "Qwen2MLP": mlp_forward, "Linear": linear_forward,
}  # fmt: skip
"""Class of transformers → its forward here. Qwen2's attention may have a sliding window, which ours does not know."""


def apply(model: Any) -> None:
    """Use the kernels in this transformers model; the head stays, as it is the loss's."""
    for module in model.modules():
        forward = None if module is model.get_output_embeddings() else FORWARDS.get(type(module).__name__)
        if forward and getattr(getattr(module, "config", None), "hidden_act", "silu") == "silu":
            module.forward = types.MethodType(forward, module)
