# One command each: `make demo` to try it, `make test` to check it. Both set up what they need, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
# More options of pip, such as --extra-index-url for PyTorch's CPU wheels.
PIP_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

.PHONY: help demo test test-numeric lint check-types audit tests bench docs lock format clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.installed ## Set up, index a small corpus and serve it at http://127.0.0.1:8000
	@$(BIN)/emcl demo --host $(HOST) --port $(PORT)

test: $(VENV)/.installed-dev system-packages lint check-types audit tests ## Set up and pass every check: lint, types, import floors, audit, tests
	@echo "==> all checks passed"

lint: $(VENV)/.installed-dev
	@echo "==> ruff: style and format"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .
	@echo "==> import-linter: model <- indexer <- service"
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

check-types: $(VENV)/.installed-dev
	@echo "==> mypy --strict"
	@$(BIN)/mypy

audit: $(VENV)/.installed-dev
	@echo "==> pip-audit: known vulnerabilities of what is installed"
	@$(BIN)/python tests/audit_dependencies.py

# One thread per operation: the tests start servers and workers of their own, and two pools would fight for the cores.
# A file's tests share what they set up, so a file stays in one process. By hand, `pytest tests/test_x.py` needs neither.
tests: $(VENV)/.installed-dev
	@echo "==> pytest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

NUMERIC := tests/model/emcl tests/model/evaluate tests/model/clip/test_towers.py tests/model/test_net.py \
  tests/model/train/test_golden_loss.py tests/model/train/test_loss.py tests/model/train/test_optimiser.py \
  tests/model/train/test_grad_cache.py tests/model/runtime/test_choose.py tests/indexer/ann tests/indexer/build/test_run.py \
  tests/indexer/store/test_query_bank.py tests/indexer/store/test_overlay.py tests/service/search/test_engine.py
# What PyTorch, oneDNN, MKL, OpenBLAS and FAISS would do on an old processor, and on one without AVX-512.
OLD := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 OPENBLAS_CORETYPE=Nehalem \
  FAISS_SIMD_LEVEL=NONE
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell \
  FAISS_SIMD_LEVEL=AVX2

test-numeric: $(VENV)/.installed-dev ## Repeat the numeric tests with 1 and 2 threads and as other processors compute
	@for machine in OMP_NUM_THREADS=1 OMP_NUM_THREADS=2 "OMP_NUM_THREADS=1 $(OLD)" "OMP_NUM_THREADS=2 $(AVX2)"; do \
	  echo "==> $$machine"; env $$machine $(BIN)/python -m pytest -q $(NUMERIC) $(PYTEST_ARGS) || exit 1; done

bench: $(VENV)/.installed-dev ## Measure everything (20 minutes) and write var/bench/report.md
	@$(BIN)/python -m benchmarks.report --output var/bench $(BENCH_ARGS)

docs: $(VENV)/.installed-dev ## Write the generated parts of the documentation
	@$(BIN)/python -m typer service.cli utils docs --name emcl --output docs/cli.md
	@echo "the table of docs/settings.md is what \`$(BIN)/python -m service.settings\` prints"

# The test environment has every extra but those that exclude each other (gpu) or reach a cloud (s3, gs).
DEV_EXTRAS := cpu decord train onnx http mcp milvus parquet speech langchain llama-index dev
UPGRADE ?=
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
  --excludes requirements/unlocked.in $(UPGRADE)
BASE := pyproject.toml requirements/install.in

lock: $(BIN)/python ## Fix versions and hashes of all dependencies again (UPGRADE=--upgrade: the newest ones)
	@$(PIP) uv
	@$(COMPILE) $(BASE) $(addprefix --extra ,$(DEV_EXTRAS)) --output-file requirements/dev.txt
	@$(COMPILE) $(BASE) --extra cpu --extra decord --constraint requirements/dev.txt --output-file requirements/base.txt
	@$(COMPILE) $(BASE) --extra gpu --extra decord --constraint requirements/dev.txt --output-file requirements/gpu.txt
	@$(BIN)/python docker/requirements.py train --extras-only | \
	  $(COMPILE) - --constraint requirements/dev.txt --output-file requirements/train.txt
	@$(COMPILE) --no-deps requirements/clip-retrieval.in --output-file requirements/clip-retrieval.txt

format: $(VENV)/.installed-dev ## Format the code
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

clean: ## Remove the virtual environment and everything that was made
	rm -rf $(VENV) var .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.PHONY: system-packages
system-packages:
	@docker/install-test-packages

$(BIN)/python:
	@echo "==> creating a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# Exactly what requirements/ names, checked by hash; PyTorch by version, because its wheel depends on the machine.
LOCKED := --require-hashes --no-deps --requirement

$(VENV)/.installed: pyproject.toml requirements/base.txt | $(BIN)/python
	@echo "==> installing the service (PyTorch first; this takes a few minutes, once)"
	@$(PIP) $$($(BIN)/python docker/requirements.py --only torch torchvision)
	@$(PIP) $(LOCKED) requirements/base.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements/dev.txt requirements/clip-retrieval.txt
	@echo "==> installing what the checks need"
	@$(PIP) $(LOCKED) requirements/dev.txt
	@$(PIP) $(LOCKED) requirements/clip-retrieval.txt
	@if command -v npm >/dev/null; then npm ci --silent --no-audit --no-fund --prefix tests/page_types; \
	  else echo "==> npm is not installed: the page's types are not checked"; fi
	@touch $@
