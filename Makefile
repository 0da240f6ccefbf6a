# Everything runs in .venv, which the first target that needs it makes; PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: train test test-slow lint bench clean

train: $(READY)  ## train the tiny model: make train ARGS="seed=1"
	$(BIN)/python -m videoseek.train recipe=sft_rl $(ARGS)

# One worker more than two cores: much of a test is waiting for processes to start.
test: $(READY)  ## all tests; none needs a network or a GPU
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

test-slow: $(READY)  ## the cases too that `make test` samples: a run killed at each of 20 places
	$(BIN)/python -m pytest --thorough tests/integration/test_kill_points.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check src kernels tests setup.py
	$(BIN)/ruff format --check src kernels tests setup.py
	$(BIN)/mypy

bench: $(READY)  ## kernels against other implementations; needs a GPU
	$(BIN)/python -m pytest --benchmark tests/benchmarks $(ARGS)

# torch goes first and alone, so that a CPU build that is at hand is not replaced by what another package asks for.
$(READY): setup.py pyproject.toml constraints.txt
	@echo "setting up $(VENV); this takes a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist src/videoseek.egg-info
