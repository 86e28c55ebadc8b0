"""What happens between iterations to the models of a run."""

from types import SimpleNamespace

import pytest
import torch

from mathpipe.grpo.config import GrpoConfig, GrpoInputs
from mathpipe.grpo.learner import Learner
from mathpipe.grpo.policy import Policy
from mathpipe.grpo.sampler import Request
from mathpipe.grpo.trainer import Trainer
from mathpipe.pipeline.config import Runtime
from mathpipe.pretrain import model
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain.config import PretrainConfig


def make_sft(folder):
    tokenizer = bpe.train(["1+2=3"] * 20, 300)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "initializer_range": 0.3}
    network = model.build(PretrainConfig(**sizes), len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    model.save(network, tokenizer, folder / "sft")
    return network, tokenizer


class Listener:
    """A sampler that keeps what it is given."""

    def sync(self, named_weights):
        self.weights = {name: weight.clone() for name, weight in named_weights}


def test_rft_samples_from_the_reference_of_its_iteration_resumed_or_not(tmp_path, monkeypatch):
    """A run that is resumed inside an iteration takes the weights from its folder: an undisturbed one must have sampled from them."""
    network, tokenizer = make_sft(tmp_path)
    config = GrpoConfig(method="rft", iterations=2, runtime=Runtime(device="cpu"))
    monkeypatch.setattr(Trainer, "write_model", lambda self, out: model.save(network, tokenizer, out))
    engine = SimpleNamespace(device=torch.device("cpu"))
    found = []
    for resumed in (False, True):
        learner = Learner(config, engine, Policy(model.load(tmp_path / "sft" / model.MODEL)))
        trainer = Trainer(config, tokenizer, tmp_path / "sft", learner, SimpleNamespace(model=None), Listener())
        trainer.sync()
        if not resumed:
            torch.nn.init.constant_(network.model.norm.weight, 2.0)  # what the policy has become
        trainer.begin_iteration(1, tmp_path, resumed)
        found.append(trainer.sampler.weights["model.norm.weight"])
    assert found[0].tolist() == found[1].tolist() == [2.0] * 16


@pytest.mark.parametrize("method", ["rft", "dpo", "online_rft"])
def test_offline_methods_sample_from_the_sft_model_while_the_policy_learns(tmp_path, monkeypatch, method):
    """The decode loop samples from a model in this process: it must not be the one that learns."""
    make_sft(tmp_path)
    engine = {"device": torch.device("cpu"), "zero_optimization_partition_weights": lambda: False}
    monkeypatch.setattr("mathpipe.grpo.trainer.make_engine", lambda config, module, lr: SimpleNamespace(module=module, **engine))
    config = GrpoConfig(method=method, sampler="transformers", max_new_tokens=8, max_prompt_tokens=64, runtime=Runtime(device="cpu"))
    trainer = Trainer.make(config, GrpoInputs(tmp_path / "sft"), bpe.load(tmp_path / "sft" / model.MODEL), torch.device("cpu"))
    ask = [Request((5, 6, 7), 8, 1.0, 1.0, 11)]
    trainer.sync()
    before = [one.ids for one in trainer.sampler.sample(ask, 8)[0]]
    with torch.no_grad():
        trainer.network().get_output_embeddings().weight.mul_(-1.0)  # what the policy has become
    trainer.sync()
    after = [one.ids for one in trainer.sampler.sample(ask, 8)[0]]
    assert (after == before) == (method != "online_rft")
    trainer.sync(evaluating=True)
    assert [one.ids for one in trainer.sampler.sample(ask, 8)[0]] != before
