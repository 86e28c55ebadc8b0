"""What tests run in the place of vLLM in the sampling engine's process: it keeps the weights it is sent and tells of them."""

import sys

import torch
import torch.distributed as dist

from mathpipe.grpo.engine import HOST, TIMEOUT, broadcast, serve
from mathpipe.grpo.sampler import Response


class Stub:
    def __init__(self):
        self.engine, self.weights, self.calls = self, {}, []

    def sample(self, requests, max_new_tokens, with_logp):
        """Name, type, shape and sum of every weight as a response's `ids`, what was called before as its `prompt`."""
        found = [(name, str(weight.dtype), tuple(weight.shape), float(weight.sum())) for name, weight in self.weights.items()]
        calls, self.calls = self.calls, []
        return [[Response(tuple(found), (), with_logp, one.temperature, (max_new_tokens, *calls))] * one.num_samples for one in requests]

    def init_weight_transfer_engine(self, request):
        store = dist.TCPStore(HOST, request["init_info"]["port"], 2, is_master=False, timeout=TIMEOUT)
        self.group = dist.ProcessGroupGloo(store, 1, 2, TIMEOUT)

    def start_weight_update(self):
        self.calls.append("start")

    def update_weights(self, request):
        info = request["update_info"]
        for name, dtype, shape in zip(info["names"], info["dtypes"], info["shapes"], strict=True):
            self.weights[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            broadcast(self.group, self.weights[name])
        self.calls.append("update")

    def finish_weight_update(self, version):
        self.calls.append("finish")

    def reset_prefix_cache(self):
        self.calls.append("reset")


if __name__ == "__main__":
    serve(Stub, int(sys.argv[4]), int(sys.argv[5]))
