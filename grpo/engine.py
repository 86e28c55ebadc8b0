"""Sampler `vllm-engine`: vLLM in a process of its own, one for each training process, weights by vLLM's weight-transfer API.

Requests and responses go through a socket pair; weights are broadcast in a process group of two: NCCL between a training process
and its engine, which has a GPU of its own (those behind the training processes' GPUs), gloo on a CPU. The engine ends when its
training process does, however that ends. It samples what `VllmSampler` samples in the training process: it runs one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mathpipe.grpo.sampler import NamedWeights, Request, Response, VllmSampler, tied_weights, with_head

HOST = "127.0.0.1"
TIMEOUT = timedelta(minutes=10)
OWN_GPU_FRAC = 0.9
"""Of its GPU's memory."""
TRAINERS_ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What describes the training processes' group, to which the engine does not belong."""


class EngineDied(RuntimeError):
    """The engine's process is gone."""


class EngineSampler:
    """The training process's side."""

    def __init__(self, path: Path, max_length: int, *, uses_gpu: bool, module: str = "mathpipe.grpo.engine") -> None:
        """
        Args:
            module: what runs in the other process.
        """
        self.tied = tied_weights(path)
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [str(path), str(max_length), "nccl" if uses_gpu else "gloo", str(theirs.fileno()), str(os.getpid())]
            environment = {name: value for name, value in os.environ.items() if name not in TRAINERS_ENVIRONMENT}
            environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads())} | (_own_gpu() if uses_gpu else {})
            self.process = subprocess.Popen([sys.executable, "-m", module, *arguments], env=environment, pass_fds=[theirs.fileno()])
        self.connection = Connection(ours.detach())
        self.receive()  # it has started
        self.transfer: Any = NcclTransfer(self) if uses_gpu else GlooTransfer(self)

    def sample(self, requests: Sequence[Request], max_new_tokens: int, with_logp: bool = True) -> list[list[Response]]:
        return self.call("sample", list(requests), max_new_tokens, with_logp)

    def sync(self, named_weights: NamedWeights) -> None:
        self.transfer.send(with_head(named_weights, self.tied))
        self.call("reset_prefix_cache")  # cached prompts belong to the old weights

    def close(self) -> None:
        self.connection.close()
        self.process.wait()

    def call(self, method: str, *arguments: Any) -> Any:
        """What the engine's method returns."""
        self.post(method, *arguments)
        return self.receive()

    def post(self, method: str, *arguments: Any) -> None:
        """Ask without waiting for the answer, which `receive` returns."""
        try:
            self.connection.send((method, arguments))
        except OSError:
            raise self._died() from None

    def receive(self) -> Any:
        """The engine's next answer.

        Raises:
            EngineDied: it is gone.
        """
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            raise self._died() from None

    def _died(self) -> EngineDied:
        code = self.process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return EngineDied(
            f"the sampling engine (process {self.process.pid}) ended {how}, its last lines stand above; the same command continues from "
            'the last checkpoint, and grpo.sampler = "vllm" samples without a process of its own'
        )

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """vLLM's `VLLMWeightSyncClient`: this method and the following."""
        self.call("init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self.call("start_weight_update")

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self.call("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.call("finish_weight_update", weight_version)


class GlooTransfer:
    """Broadcasts weights on a CPU (the other side: gloo_transfer.py)."""

    def __init__(self, client: EngineSampler) -> None:
        self.client = client
        store = dist.TCPStore(HOST, 0, 2, is_master=True, timeout=TIMEOUT, wait_for_workers=False)
        client.post("init_weight_transfer_engine", {"init_info": {"port": store.port}})
        self.group = dist.ProcessGroupGloo(store, 0, 2, TIMEOUT)
        client.receive()

    def send(self, weights: Sequence[tuple[str, Tensor]]) -> None:
        """One whole update."""
        self.client.start_weight_update()
        update = {
            "names": [name for name, _ in weights], "dtypes": [str(weight.dtype).removeprefix("torch.") for _, weight in weights],
            "shapes": [list(weight.shape) for _, weight in weights],
        }  # fmt: skip
        self.client.post("update_weights", {"update_info": update})
        try:
            for _, weight in weights:
                broadcast(self.group, weight.detach().contiguous())
        except RuntimeError:  # gloo's, when the other side is gone
            self.client.receive()
            raise
        self.client.receive()
        self.client.finish_weight_update()


class NcclTransfer:
    """vLLM's own sender between GPUs."""

    def __init__(self, client: EngineSampler) -> None:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        with socket.socket() as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        source: Any = Weights()
        self.source = source
        info = NCCLTrainerInitInfo(HOST, port, world_size=2, rank=0)
        self.sender = NCCLTrainerWeightTransferEngine.trainer_init(info, client=client, source=source)

    def send(self, weights: Sequence[tuple[str, Tensor]]) -> None:
        """One whole update."""
        self.source.weights = weights
        self.sender.send_weights()


@dataclass
class Weights:
    """vLLM's `WeightSource`: those of the next update."""

    weights: Sequence[tuple[str, Tensor]] = ()

    def metadata(self) -> list[Any]:
        """Name, type and shape of each."""
        return [SimpleNamespace(name=name, dtype=weight.dtype, shape=tuple(weight.shape)) for name, weight in self.weights]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, weight.detach()) for name, weight in self.weights)


def broadcast(group: Any, tensor: Tensor) -> None:
    """From the training process to the engine."""
    options = dist.BroadcastOptions()
    options.rootRank = 0
    group.broadcast([tensor], options).wait()


def _own_gpu() -> dict[str, str]:
    processes, number = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = visible.split(",")
    if len(gpus) < 2 * processes:
        raise ValueError(
            f'grpo.sampler "vllm-engine" needs a GPU for each of {processes} training processes and one for each of their engines, found '
            f'{len(gpus)}; lower runtime.num_processes or take sampler = "vllm", which shares the GPU'
        )
    return {"CUDA_VISIBLE_DEVICES": gpus[processes + number]}


def serve(make: Callable[[], Any], file: int, parent: int) -> None:
    """The engine's process: answer until the training process hangs up. An error ends it, which the training process notices.

    Args:
        make: starts the sampler.
        file: our end of the socket pair.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; this one ends with the other
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    connection, sampler = Connection(file), make()
    connection.send("started")
    with contextlib.suppress(EOFError):
        while True:
            method, arguments = connection.recv()
            target = sampler if method == "sample" else sampler.engine
            connection.send(getattr(target, method)(*arguments))
    os._exit(0)  # native libraries can abort in the interpreter's teardown


def _end_with(parent: int) -> None:
    """End this process once its parent is another one: the training process has died, whoever else holds its end of the socket."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def start_vllm(path: str, max_length: str, transfer: str) -> VllmSampler:
    """The sampler of the engine's process."""
    from vllm.config import WeightTransferConfig
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    uses_gpu = transfer == "nccl"
    if not uses_gpu:
        WeightTransferEngineFactory.register_engine(transfer, "mathpipe.grpo.gloo_transfer", "GlooWeightTransferEngine")
    memory = {"gpu_memory_utilization": OWN_GPU_FRAC} if uses_gpu else {}
    settings: dict[str, Any] = {"distributed_executor_backend": "uni", "weight_transfer_config": WeightTransferConfig(backend=transfer)}
    return VllmSampler(Path(path), int(max_length), uses_gpu=uses_gpu, **settings, **memory)


if __name__ == "__main__":
    serve(partial(start_vllm, *sys.argv[1:4]), int(sys.argv[4]), int(sys.argv[5]))
