"""The chain: every stage, its module, its config section and what it reads. The one table the rest is derived from."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from mathpipe.pipeline.config import ConfigError, nearest

NUM_VOLUMES = 4
"""Volumes that are compared: 1 to 4 times the tokens of round 1 (section 2.1: 40, 80, 120, 160 billion)."""


@dataclass(frozen=True)
class Comparison:
    """Arms beside each other, each with several models that differ in nothing but the seed."""

    family: str
    """`arm`: pre-training (pretrain/ablation_config.py); `rl`: reinforcement (grpo/arms_config.py)."""
    arms: tuple[str, ...]
    """The first is what the others are compared with."""
    num_seeds: int = 3


COMPARISONS = {
    "code-first": Comparison("arm", ("general-math", "code-math", "math")),
    "mixing": Comparison("arm", ("math", "code-math", "mixed")),
    "arxiv": Comparison("arm", ("general", "general-arxiv", "general-math")),
    "figure5": Comparison("rl", ("rft", "online_rft", "dpo", "ppo", "grpo_os", "grpo_ps")),
    "supervision": Comparison("rl", ("grpo_os", "grpo_ps", "plain", "steps"), num_seeds=5),
    "groups": Comparison("rl", ("plain", "ladder", "top_p", "variants", "reject", "refill")),
}
"""What `mathpipe ablate` repeats: the comparisons of section 5.1, figure 5, supervision (rewards of a model,
then of rules), and what keeps groups diverse."""
NUM_ROUNDS = 4
"""Rounds of the corpus loop (section 2.1: after four iterations nearly 98 % of the data had been collected before)."""


@dataclass(frozen=True)
class Stage:
    """One node of the graph."""

    name: str
    module: str
    """Run as `python -m MODULE`."""
    config: str
    """`module:Class` of its config dataclass (torch-free; carries SECTION and VERSION)."""
    summary: str
    """What it does, in one line for tables and help texts."""
    inputs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Input name (a field of the stage's inputs dataclass) → stage that makes it."""
    distributed: bool = False
    """Whether it is launched with `runtime.num_processes` data-parallel processes."""
    when_done: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Further inputs, taken where their stage's artifact is there when the plan is made; they make nothing run."""
    conditional: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Further inputs, read where the settings want them (`conditional_inputs` of the config); their stages then run like any other."""
    optional: bool = False
    """Whether it runs only when it, or what it leads to, is asked for by name."""
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Values of its section that tell it from the other stages of that section."""

    def config_class(self) -> Any:
        """The config dataclass, imported on use."""
        module, _, name = self.config.partition(":")
        return getattr(importlib.import_module(module), name)


def _round(number: int) -> list[Stage]:
    r, corpus = f"round{number}", "mathpipe.corpus"
    before, chosen_before, domains_before, decided_before = (
        {"previous": f"round{number - 1}{step}"} if number > 1 else {} for step in ("", ".select", ".domains", ".annotate")
    )
    return [
        Stage(f"{r}.train", f"{corpus}.classifier", f"{corpus}.round_config:ClassifierConfig",
              "fastText classifier on the seeds", {"pages": "pages", **before}),
        Stage(f"{r}.score", f"{corpus}.score", f"{corpus}.round_config:ScoreConfig",
              "P(math) of every page", {"pages": "pages", "classifier": f"{r}.train"}),
        Stage(f"{r}.select", f"{corpus}.selection", f"{corpus}.round_config:SelectConfig",
              "the highest-scoring pages, up to N tokens", {"pages": "pages", "scores": f"{r}.score", **chosen_before}),
        Stage(f"{r}.domains", f"{corpus}.domains", f"{corpus}.round_config:DomainsConfig",
              "domains with more than 10 % of their pages collected",
              {"pages": "pages", "scores": f"{r}.score", "selected": f"{r}.select", **domains_before}),
        Stage(f"{r}.annotate", f"{corpus}.annotate", f"{corpus}.round_config:AnnotateConfig",
              "which URL prefixes of those domains are math",
              {"pages": "pages", "selected": f"{r}.select", "domains": f"{r}.domains", "scores": f"{r}.score", **decided_before}),
        Stage(r, f"{corpus}.grow", f"{corpus}.round_config:GrowConfig",
              "seeds grow by uncollected pages under annotated prefixes",
              {"pages": "pages", "classifier": f"{r}.train", "selected": f"{r}.select", "domains": f"{r}.domains",
               "annotations": f"{r}.annotate", **before}),
    ]  # fmt: skip


def _volumes() -> list[Stage]:
    """The volume sweep: what is cheap comes first, so that a crawl too small for it is found out before anything is trained."""
    corpus, pretrain = "mathpipe.corpus", "mathpipe.pretrain"
    selected = {1: "round1.select"} | {n: f"volume{n}.select" for n in range(2, NUM_VOLUMES + 1)}
    numbers = range(1, NUM_VOLUMES + 1)
    return [
        *[Stage(selected[n], f"{corpus}.volume", f"{corpus}.round_config:SelectConfig", f"the {n} × N tokens that round 1 scored highest",
                {"pages": "pages", "scores": "round1.score", "smaller": selected[n - 1]}, optional=True) for n in numbers[1:]],
        *[Stage(f"volume{n}.corpus", f"{corpus}.decontaminate", f"{corpus}.config:CorpusConfig", "the volume without benchmark 10-grams",
                {"pages": "pages", "selected": selected[n], "benchmarks": "benchmarks"}, optional=True) for n in numbers],
        Stage("volume1.tokenizer", f"{pretrain}.train_tokenizer", f"{pretrain}.config:TokenizerConfig",
              "byte-level BPE for all volumes", {"corpus": "volume1.corpus"}, optional=True),
        *[Stage(f"volume{n}.tokens", f"{pretrain}.tokens", f"{pretrain}.config:TokensConfig", "token shards of the volume",
                {"corpus": f"volume{n}.corpus", "tokenizer": "volume1.tokenizer"}, optional=True) for n in numbers],
        *[Stage(f"volume{n}", f"{pretrain}.sweep", f"{pretrain}.config:SweepConfig", f"small model on volume {n}",
                {"tokens": f"volume{n}.tokens", "tokenizer": "volume1.tokenizer"}, distributed=True, optional=True) for n in numbers],
        Stage("volumes", f"{pretrain}.volumes", f"{pretrain}.config:VolumesConfig", "held-out loss of the small models, side by side",
              {"benchmarks": "benchmarks", "tokens": "volume1.tokens", **{f"corpus{n}": f"volume{n}.corpus" for n in numbers},
               **{f"volume{n}": f"volume{n}" for n in numbers}}, optional=True),
    ]  # fmt: skip


def _comparisons(arm: Stage, compare: Stage) -> list[Stage]:
    """A stage for each arm and seed, once whatever compares it, and the comparisons of a family (the name of `arm`)."""
    chosen = {name: comparison for name, comparison in COMPARISONS.items() if comparison.family == arm.name}
    runs_of = {name: [(which, seed) for which in found.arms for seed in range(found.num_seeds)] for name, found in chosen.items()}
    runs = dict.fromkeys(run for made in runs_of.values() for run in made)
    return [
        *[replace(arm, name=f"{arm.name}.{which}.{seed}", summary=f"{which} with seed {seed}", settings={"arm": which, "seed": seed})
          for which, seed in runs],
        *[replace(compare, name=f"ablate.{name}", summary=f"{', '.join(found.arms)}: side by side",
                  inputs={**compare.inputs, **{f"runs.{which}.{seed}": f"{arm.name}.{which}.{seed}" for which, seed in runs_of[name]}})
          for name, found in chosen.items()],
    ]  # fmt: skip


ROUNDS = tuple(f"round{n}" for n in range(1, NUM_ROUNDS + 1))
CORPUS_STAGES = ("benchmarks", "crawl", "pages", *ROUNDS, "corpus")
"""What a report on the corpus reads."""
GRPO_FURTHER = {"examples": "examples", "clean": "examples.clean", "reward_model": "reward_model"}
"""Conditional inputs of reinforcement."""
_corpus, _pretrain, _grpo, _eval = "mathpipe.corpus", "mathpipe.pretrain", "mathpipe.grpo", "mathpipe.eval"

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in [
        Stage("benchmarks", f"{_eval}.benchmarks", f"{_eval}.config:BenchmarksConfig",
              "the suites, and the texts to decontaminate against"),
        Stage("crawl", f"{_corpus}.crawl", f"{_corpus}.crawl_config:CrawlConfig",
              "WARC files: rendered package docs, or local archives"),
        Stage("pages", f"{_corpus}.pages", f"{_corpus}.config:PagesConfig",
              "text with its LaTeX, URL dedup, near-dedup", {"crawl": "crawl"}),
        *[stage for number in range(1, NUM_ROUNDS + 1) for stage in _round(number)],
        *_volumes(),
        Stage("corpus", f"{_corpus}.decontaminate", f"{_corpus}.config:CorpusConfig", "the math corpus without benchmark 10-grams",
              {"pages": "pages", "selected": f"round{NUM_ROUNDS}.select", "benchmarks": "benchmarks"}),
        Stage("sources", f"{_corpus}.sources", f"{_corpus}.sources_config:SourcesConfig", "code, LaTeX and general text beside the corpus",
              {"pages": "pages", "selected": f"round{NUM_ROUNDS}.select"}),
        Stage("sources.clean", f"{_corpus}.decontaminate", f"{_corpus}.config:CorpusConfig", "the same without benchmark 10-grams",
              {"pages": "sources", "benchmarks": "benchmarks"}),
        Stage("corpus.report", f"{_eval}.report", f"{_eval}.config:ReportConfig", "one HTML file on the corpus alone",
              {name: name for name in CORPUS_STAGES}, when_done={"volumes": "volumes"}, optional=True),
        Stage("tokenizer", f"{_pretrain}.train_tokenizer", f"{_pretrain}.config:TokenizerConfig",
              "byte-level BPE, digits split", {"corpus": "corpus"}),
        Stage("tokens", f"{_pretrain}.tokens", f"{_pretrain}.config:TokensConfig", "memory-mapped token shards with document index",
              {"corpus": "corpus", "tokenizer": "tokenizer", "sources": "sources.clean"}),
        Stage("pretrain", f"{_pretrain}.train", f"{_pretrain}.config:PretrainConfig", "language model on the corpus",
              {"tokens": "tokens", "tokenizer": "tokenizer"}, distributed=True),
        *_comparisons(
            Stage("arm", f"{_pretrain}.ablate", f"{_pretrain}.ablation_config:AblateConfig", "",
                  {"tokens": "tokens", "tokenizer": "tokenizer"}, distributed=True, optional=True),
            Stage("", f"{_pretrain}.compare", f"{_pretrain}.config:VolumesConfig", "",
                  {"benchmarks": "benchmarks", "corpus": "corpus", "sources": "sources.clean", "tokens": "tokens"}, optional=True)),
        Stage("examples", "mathpipe.sft.collect", "mathpipe.sft.config:ExamplesConfig",
              "CoT, PoT and tool-integrated examples of one schema, verified by execution"),
        Stage("examples.clean", f"{_corpus}.clean_examples", f"{_corpus}.config:CleanExamplesConfig",
              "the same without benchmark 10-grams, training splits apart", {"pages": "examples", "benchmarks": "benchmarks"}),
        Stage("contamination", f"{_corpus}.contamination", f"{_corpus}.config:ContaminationConfig",
              "share of each suite's items with text in the corpus or in the examples",
              {"benchmarks": "benchmarks", "corpus": "corpus", "sources": "sources.clean", "examples": "examples.clean"}),
        Stage("sft", "mathpipe.sft.train", "mathpipe.sft.config:SftConfig", "the model on the examples, packed",
              {"pretrain": "pretrain", "examples": "examples", "clean": "examples.clean"}, distributed=True),
        Stage("labels", f"{_grpo}.labels", f"{_grpo}.reward_config:LabelsConfig", "roll-outs say which steps of solutions are right",
              {"sft": "sft"}, distributed=True, conditional={"examples": "examples", "clean": "examples.clean"}, optional=True),
        Stage("reward_model", f"{_grpo}.train_reward", f"{_grpo}.reward_config:RewardModelConfig", "a model of those labels",
              {"labels": "labels", "pretrain": "pretrain", "sft": "sft"}, distributed=True, optional=True),
        Stage("grpo", f"{_grpo}.train", f"{_grpo}.config:GrpoConfig",
              "group relative policy optimisation", {"sft": "sft"}, distributed=True,
              conditional=GRPO_FURTHER),
        *_comparisons(
            Stage("rl", f"{_grpo}.arm", f"{_grpo}.arms_config:ArmConfig", "", {"sft": "sft"}, distributed=True,
                  conditional=GRPO_FURTHER, optional=True),
            Stage("", f"{_grpo}.compare", f"{_grpo}.arms_config:CompareConfig", "", optional=True)),
        Stage("evaluate", f"{_eval}.evaluate", f"{_eval}.config:EvaluateConfig", "every model of the chain on every suite",
              {"benchmarks": "benchmarks", "pretrain": "pretrain", "sft": "sft", "grpo": "grpo"}),
        Stage("report", f"{_eval}.report", f"{_eval}.config:ReportConfig", "one HTML file",
              {name: name for name in (*CORPUS_STAGES, "tokenizer", "tokens", "contamination", "pretrain", "sft", "grpo", "evaluate")},
              when_done={"volumes": "volumes"} | {name.replace("-", "_"): f"ablate.{name}" for name in COMPARISONS}),
    ]
}  # fmt: skip


def check_agreement(configs: Mapping[str, Any]) -> None:
    """What must agree between sections, checked before anything runs.

    Args:
        configs: section → config object.

    Raises:
        ConfigError: a phase names a source of tokens that nothing makes, or later stages want longer contexts than the model that
            pretrain makes.
    """
    if {"pretrain", "sweep", "sources"} <= set(configs):
        corpus = ("math",)
        for section, known in (("pretrain", (*corpus, *configs["sources"].sources)), ("sweep", corpus)):
            for name in (name for phase in configs[section].phases for name, weight in phase.mix.items() if weight):
                if name not in known:
                    there = f"{nearest(name, known)} (there are: {', '.join(known)})"
                    raise ConfigError(f"{section}.phases names {name!r}, which is no source of its tokens{there}")
    if not {"pretrain", "sft", "grpo"} <= set(configs) or configs["pretrain"].start:  # a fetched model brings its own limit
        return
    pretrain, sft, grpo = configs["pretrain"], configs["sft"], configs["grpo"]
    contexts = {"sft.context": sft.context, "grpo.max_prompt_tokens + grpo.max_new_tokens": grpo.max_prompt_tokens + grpo.max_new_tokens}
    for name, tokens in contexts.items():
        if tokens > pretrain.max_position:
            raise ConfigError(f"{name} {tokens} exceeds pretrain.max_position {pretrain.max_position}; lower it, or raise max_position")


def find(name: str) -> Stage:
    """The stage of that name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name not in STAGES:
        raise ConfigError(f"unknown stage {name!r}{nearest(name, STAGES)} (stages: {', '.join(default())})")
    return STAGES[name]


def default() -> list[str]:
    """The stages of the chain: all that are not optional."""
    return [name for name, stage in STAGES.items() if not stage.optional]


def upstream(name: str, table: Mapping[str, Stage] = STAGES) -> list[str]:
    """Stages `name` depends on, in running order, itself last.

    Args:
        table: the stages of a plan, which know their conditional inputs.
    """
    seen: set[str] = set()

    def visit(stage: str) -> None:
        if stage not in seen:
            seen.add(stage)
            for source in table[stage].inputs.values():
                visit(source)

    visit(name)
    return [stage for stage in table if stage in seen]


def downstream(name: str, table: Mapping[str, Stage] = STAGES) -> list[str]:
    """`name` and every stage that depends on it, in running order; optional ones only where `name` is optional itself."""
    found = {name}
    for stage in table.values():
        if found & set(stage.inputs.values()) and (table[name].optional or not stage.optional):
            found.add(stage.name)
    return [stage for stage in table if stage in found]
