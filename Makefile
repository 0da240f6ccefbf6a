# Everything runs in .venv, which the first target that needs it makes; PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# vLLM and lmms-eval pin other versions of the same libraries: each has an environment of its own.
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready
LMMS := .venv-lmms
LMMS_READY := $(LMMS)/.ready

.PHONY: train test test-slow test-tf457 test-vllm test-lmms lint bench clean

train: $(READY)  ## train the tiny model: make train ARGS="seed=1"
	$(BIN)/python -m videoseek.train recipe=sft_rl $(ARGS)

# One worker more than two cores: much of a test is waiting for processes to start.
test: $(READY)  ## all tests; none needs a network or a GPU
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

test-slow: $(READY)  ## the tests too that `make test` leaves out because they take minutes
	$(BIN)/python -m pytest --thorough -m thorough $(ARGS)

test-tf457: $(READY) $(VENV)-tf457/.ready  ## saved folders under transformers 4.57, in an environment of its own
	VIDEOSEEK_TF457_PYTHON=$(VENV)-tf457/bin/python $(BIN)/python -m pytest -m tf457 $(ARGS)

$(VENV)-tf457/.ready:
	$(PYTHON) -m venv $(VENV)-tf457
	$(VENV)-tf457/bin/python -m pip install --quiet -c constraints.txt torch
	$(VENV)-tf457/bin/python -m pip install --quiet "transformers==4.57.*"
	touch $@

test-vllm: $(READY) $(VLLM_READY)  ## tests of rollout.engine=vllm, with a real vLLM on the CPU
	VIDEOSEEK_VLLM_PYTHON=$(abspath $(VLLM))/bin/python $(BIN)/python -m pytest tests/vllm $(ARGS)

test-lmms: $(READY) $(LMMS_READY)  ## the plug for lmms-eval, under its own command
	VIDEOSEEK_LMMS_PYTHON=$(abspath $(LMMS))/bin/python $(BIN)/python -m pytest tests/lmms $(ARGS)

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

$(VLLM_READY): tests/vllm/requirements.txt tests/vllm/engine.txt tests/vllm/sitecustomize.py
	@echo "setting up $(VLLM); this takes about three minutes and 3 GB"
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --no-deps --require-hashes -r tests/vllm/engine.txt
	$(VLLM)/bin/python -m pip install --quiet --no-deps -r tests/vllm/requirements.txt
	cp tests/vllm/sitecustomize.py $(VLLM)/lib/python3*/site-packages/
	touch $@

$(LMMS_READY): setup.py tests/lmms/requirements.txt tests/vllm/sitecustomize.py
	@echo "setting up $(LMMS); this takes about two minutes and 2 GB"
	$(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install --quiet torch==2.13.0
	$(LMMS)/bin/python -m pip install --quiet --no-deps -r tests/lmms/requirements.txt -e .
	cp tests/vllm/sitecustomize.py $(LMMS)/lib/python3*/site-packages/
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-tf457 $(VLLM) $(LMMS) build dist src/videoseek.egg-info
