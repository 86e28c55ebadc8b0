"""vLLM's side of a weight transfer on a CPU: its NCCL engine's life cycle over gloo (registered by engine.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from mathpipe.grpo.engine import HOST, TIMEOUT, broadcast


@dataclass
class GlooInit(WeightTransferInitInfo):
    """Port of the training process's store."""

    port: int


@dataclass
class GlooUpdate(WeightTransferUpdateInfo):
    """What is sent, in order."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class GlooWeightTransferEngine(WeightTransferEngine[GlooInit, GlooUpdate]):
    """Receives whole weights in the transformers layout and loads them as from a checkpoint."""

    init_info_cls = GlooInit
    update_info_cls = GlooUpdate

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        store = dist.TCPStore(HOST, init_info.port, 2, is_master=False, timeout=TIMEOUT)
        self.group = dist.ProcessGroupGloo(store, 1, 2, TIMEOUT)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, object]) -> None:
        self.receive_weights(self.parse_update_info(update_info))  # without the base class's wait for an accelerator

    def receive_weights(self, update_info: GlooUpdate) -> None:
        model: Any = self.model
        for name, dtype, shape in zip(update_info.names, update_info.dtypes, update_info.shapes, strict=True):
            weight = torch.empty(shape, dtype=getattr(torch, dtype))
            broadcast(self.group, weight)
            model.load_weights([(name, weight)])

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """The group ends with the process."""
