# Everything runs in .venv, which the first target that needs it makes; PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: train test test-slow test-tf457 test-vllm test-ray test-lmms lint bench clean

train: $(READY)  ## train the tiny model: make train ARGS="seed=1"
	$(BIN)/python -m videoseek.train recipe=sft_rl $(ARGS)

# One worker more than two cores: much of a test is waiting for processes to start.
test: $(READY)  ## all tests; none needs a network or a GPU
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

test-slow: $(READY)  ## the tests too that `make test` leaves out, because they take minutes
	$(BIN)/python -m pytest --thorough -m thorough $(ARGS)

test-vllm: $(READY) $(VENV)-vllm/.ready  ## rollout.engine=vllm with a vLLM for CPUs, in an environment of its own
	VIDEOSEEK_VLLM_PYTHON=$(abspath $(VENV)-vllm/bin/python) $(BIN)/python -m pytest tests/real_vllm $(ARGS)

$(VENV)-vllm/.ready: $(wildcard tests/real_vllm/*.txt) tests/real_vllm/sitecustomize.py
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet -c constraints.txt torch
	$(VENV)-vllm/bin/python -m pip install --quiet --no-deps --require-hashes -r tests/real_vllm/engine.txt
	$(VENV)-vllm/bin/python -m pip install --quiet --no-deps -r tests/real_vllm/requirements.txt
	cp tests/real_vllm/sitecustomize.py $(VENV)-vllm/lib/python3*/site-packages/
	touch $@

test-ray: $(READY) $(VENV)-ray/.ready  ## rollout.placement=ray on a local cluster, with a stand-in for vLLM
	PYTHONPATH=$(abspath $(VENV)-ray) $(BIN)/python -m pytest tests/unit/serving tests/real_vllm -m ray $(ARGS)

$(VENV)-ray/.ready:
	$(BIN)/python -m pip install --quiet -c constraints.txt --target $(VENV)-ray ray
	touch $@

test-lmms: $(READY) $(VENV)-lmms/.ready  ## the plug for lmms-eval, under its own command in an environment of its own
	VIDEOSEEK_LMMS_PYTHON=$(abspath $(VENV)-lmms/bin/python) $(BIN)/python -m pytest tests/lmms $(ARGS)

$(VENV)-lmms/.ready: setup.py tests/lmms/requirements.txt
	$(PYTHON) -m venv $(VENV)-lmms
	$(VENV)-lmms/bin/python -m pip install --quiet -c constraints.txt torch
	$(VENV)-lmms/bin/python -m pip install --quiet --no-deps -r tests/lmms/requirements.txt -e .
	touch $@

test-tf457: $(READY) $(VENV)-tf457/.ready  ## saved folders under transformers 4.57, in an environment of its own
	VIDEOSEEK_TF457_PYTHON=$(VENV)-tf457/bin/python $(BIN)/python -m pytest -m tf457 $(ARGS)

$(VENV)-tf457/.ready:
	$(PYTHON) -m venv $(VENV)-tf457
	$(VENV)-tf457/bin/python -m pip install --quiet -c constraints.txt torch
	$(VENV)-tf457/bin/python -m pip install --quiet "transformers==4.57.*"
	touch $@

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
	rm -rf $(VENV) $(VENV)-vllm $(VENV)-ray $(VENV)-lmms $(VENV)-tf457 build dist src/videoseek.egg-info
