# mathpipe: `make pipeline` runs the whole chain, `make test` the tests; each sets up .venv first when needed.
SHELL := /bin/bash
PROFILE ?= tiny
ARGS ?=
ONLY ?=
RUN := .venv/bin/mathpipe run --profile $(PROFILE) $(ARGS)
READY := .venv/.ready
# DeepSpeed looks for ninja in PATH.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup pipeline corpus annotate sweep-volume pretrain sft grpo eval report plan status test test-all check bench ui clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PROFILE=tiny|manuals|small|paper and ARGS='--set grpo.group_size=16' go with every stage; .venv/bin/mathpipe --help has the rest"

setup: $(READY)  ## build .venv from constraints.txt and check every engine (5 to 10 minutes, 3.5 GB)

$(READY): constraints.txt pyproject.toml
	@bash pipeline/setup.sh

pipeline: $(READY)  ## the whole chain: crawl, corpus, pre-training, SFT, GRPO, evaluation, report
	@$(RUN)

corpus: $(READY)  ## as far as the math corpus, with a report on it
	@$(RUN) corpus.report

sweep-volume: $(READY)  ## a small model on 1×, 2×, 3×, 4× round 1's tokens: which is best
	@.venv/bin/mathpipe sweep-volume --profile $(PROFILE) $(ARGS)

pretrain: $(READY)  ## as far as the pre-trained model
	@$(RUN) pretrain

sft: $(READY)  ## as far as the SFT model
	@$(RUN) sft

grpo: $(READY)  ## as far as the GRPO model
	@$(RUN) grpo

eval: $(READY)  ## as far as the evaluation of every model on every suite
	@$(RUN) evaluate

report: $(READY)  ## the HTML report
	@$(RUN) report

annotate: $(READY)  ## the page on which people decide which URLs are mathematics (annotate.source = "human")
	@.venv/bin/mathpipe annotate --profile $(PROFILE) $(ARGS)

plan: $(READY)  ## what would run, why, and how large it is
	@.venv/bin/mathpipe plan --profile $(PROFILE) $(ARGS)

status: $(READY)  ## the state of every stage
	@.venv/bin/mathpipe status --profile $(PROFILE) $(ARGS)

test: $(READY)  ## the test suite, without the slow tests
	@.venv/bin/python -m pytest $(ARGS)

test-all: $(READY)  ## the test suite with the slow tests
	@.venv/bin/python -m pytest -m '' $(ARGS)

check: $(READY)  ## ruff and mypy
	@.venv/bin/ruff check .
	@.venv/bin/mypy pipeline corpus pretrain sft grpo eval

bench: .venv/.bench  ## measure against other projects (ONLY=name for one), into runs/bench/results.json
	@.venv/bin/mathpipe bench $(if $(ONLY),--only $(ONLY)) $(ARGS)

.venv/.bench: constraints-bench.txt $(READY)  # the peers, beside ours: they fit
	@.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -r constraints-bench.txt
	@touch $@

ui: $(READY)  ## the Luigi page and TensorBoard on 127.0.0.1, with a list of links
	@.venv/bin/mathpipe ui --profile $(PROFILE) $(ARGS)

clean:  ## what can be removed (removes nothing)
	@echo "artifacts that no plan refers to:  .venv/bin/mathpipe gc --profile $(PROFILE)   (with --yes to remove them)"
	@echo "all artifacts:                     rm -r runs"
	@echo "the environment:                   rm -rf .venv"
