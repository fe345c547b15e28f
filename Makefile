# crossover. `make bench` is the main job, `make test` the check; both set themselves up. `make help` lists the rest.
# On a host with its own PyTorch and no network: make bench VENV= PYTHON=python3
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
SUITE ?= auto
OUT ?= results
FRESH ?=
BUDGET ?=
ARGS ?=
NPROC ?=
export TORCH_INDEX

PY = $(if $(VENV),$(VENV)/bin/python,$(PYTHON))

.PHONY: help setup bench gpu test test-aot36 lint report check-results perf tune aot wheels clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16
	@echo "variables: SUITE=smoke|quick|... OUT=folder FRESH=1 BUDGET=4m NPROC=8 ARGS='--dry-run' VENV= PYTHON=python3 TORCH_INDEX=..."

setup: ## make the virtual environment (VENV= to use PYTHON as it is)
	@$(if $(VENV),$(PYTHON) -m bench.install $(VENV) $(EXTRAS),true)

bench: setup ## measure (GPU, or CPU without one), price, test the claim, write results/local/report
	@$(PY) -m bench list providers > /dev/null
	@$(PY) $(if $(NPROC),-m torch.distributed.run --standalone --nproc-per-node $(NPROC)) -m bench run --suite $(SUITE) --out $(OUT) $(if $(filter-out 0 no false,$(FRESH)),--fresh) $(if $(BUDGET),--budget $(BUDGET)) $(ARGS)
	@$(if $(findstring --dry-run,$(ARGS)),true,$(PY) -m bench report --out $(OUT))

test: setup ## the tests: one process interprets the kernels, a second compiles them ahead of time
	@$(PY) -m pytest $(if $(shell $(PY) -c 'import xdist' 2>/dev/null && echo yes),-n 2 --dist worksteal)
	@TRITON_AOT_TESTS=1 $(PY) -m pytest tests/aot

lint: setup ## ruff and mypy; changes nothing
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

report: setup ## rebuild the tracked derived files from the tracked runs, as of results/as_of; ARGS='--as-of 2025-06-01' moves that date
	@$(PY) -m bench report --tracked $(ARGS)

check-results: setup ## the same into a scratch folder, and compare
	@$(PY) -m bench report --check

gpu: setup ## on a GPU host: kernel tests for real, suite quick (or SUITE), the run folder packed into PACK
	-@$(PY) -m pytest tests/ops --maxfail=20
	@$(PY) -m bench run --suite $(SUITE:auto=quick) --out $(OUT) --pack $(or $(PACK),packed) $(if $(BUDGET),--budget $(BUDGET))
	@$(PY) -m bench claim --out $(OUT)

perf: setup ## time every op, backend and public kernel installed here, into OUT/kernels/<run> (a CPU's: OUT/local/kernels); ARGS='--op NAME --run FOLDER'
	@$(PY) -m tests.perf --out $(OUT) $(if $(BUDGET),--budget $(BUDGET)) $(if $(PACK),--pack $(PACK)) $(ARGS)

tune: setup ## try the kernels' launch candidates on this GPU; writes results/local/tuning.csv and best.csv
	@$(PY) -m bench tune $(if $(BUDGET),--budget $(BUDGET)) $(ARGS)

# torch 2.10 and 2.11 for CUDA bring triton 3.6.0: kernels are compiled with it as well as with the one installed
OLD_TRITON = .aot/triton36
$(OLD_TRITON)/triton/__init__.py: | setup
	@$(PY) -m pip install --quiet --no-deps --target $(OLD_TRITON) triton==3.6.0

test-aot36: setup $(OLD_TRITON)/triton/__init__.py ## the ahead-of-time tests with triton 3.6.0
	@PYTHONPATH=$(OLD_TRITON):. TRITON_AOT_TESTS=1 $(PY) -m pytest tests/aot

aot: setup $(OLD_TRITON)/triton/__init__.py ## compile every kernel for sm_80, sm_90, sm_100 with both tritons; rewrites the tables (minutes)
	@printf '%s\n' 80 90 100 | xargs -P 2 -I{} $(PY) -m tests.aot.table --write --arch {} $(ARGS)
	@printf '%s\n' 80 90 100 | PYTHONPATH=$(OLD_TRITON):. xargs -P 2 -I{} $(PY) -m tests.aot.table --write --arch {} $(ARGS)

wheels: setup ## into .wheels: what a host with no network may lack (PYTHON_TARGET=3.12)
	@$(PY) -m pip download --quiet --no-deps --only-binary=:all: --python-version $(or $(PYTHON_TARGET),3.12) \
	  --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	  -d .wheels pytest pytest-benchmark py-cpuinfo iniconfig pluggy typer rich filelock nvidia-ml-py shellingham click markdown-it-py mdurl pygments annotated-doc \
	  altair narwhals jsonschema jsonschema-specifications referencing rpds-py attrs vl-convert-python jinja2 markupsafe typing-extensions packaging

clean: ## remove the environment, caches and this machine's own derived files
	rm -rf $(VENV) .aot .wheels .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis results/local
