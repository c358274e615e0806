# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= demo
# Modules are compiled at their first import: pip would compile 13,000 of them on one core (30 s).
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test docs cluster test-cluster fuzz lint format bench clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# Installed again only when what is installed changes.
$(BIN)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(PIP) -e '.[dev]'
	@touch $@

demo: $(BIN)/.installed ## set up, generate a benchmark, train Base and FMCNet, evaluate, report (into demo/)
	@$(BIN)/fmcnet demo --out $(OUT)

test: $(BIN)/.installed ## set up and run all tests
	@$(BIN)/python -m pytest -n 4 --dist worksteal

$(BIN)/.docs: $(BIN)/.installed
	@$(PIP) -e '.[docs]'
	@touch $@

docs: $(BIN)/.docs ## build the documentation (into site/); the pages open without a network
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@! grep -rE '<(script|link|img)[^>]* (src|href)="?(https?:)?//' site --include='*.html'

$(BIN)/.milvus: $(BIN)/.installed
	@$(PIP) -e '.[milvus]' milvus
	@touch $@

cluster: $(BIN)/.milvus ## whether a real Milvus server (from PyPI) starts on this machine
	@timeout 180 $(BIN)/python -m tests.retrieval.cluster

test-cluster: $(BIN)/.milvus ## the gallery's contract on a real Milvus server that it starts and stops (minutes)
	@FMCNET_CLUSTER=1 $(BIN)/python -m pytest tests/retrieval/test_contract.py tests/retrieval/test_milvus.py

SECONDS ?= 120
fuzz: $(BIN)/.installed ## broken files to every reader for SECONDS (120), broken requests to the service (minutes)
	@$(BIN)/python -m tests.fuzz.readers $(SECONDS)
	@FMCNET_BAD_INPUT=$$(($(SECONDS) * 10)) FMCNET_OPENAPI=$$(($(SECONDS) / 2)) \
	  $(BIN)/python -m pytest tests/server/test_bad_input.py tests/server/test_openapi.py

lint: $(BIN)/.installed ## ruff and the strict type checker
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(BIN)/.installed ## let ruff format the code
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

bench: $(BIN)/.installed ## timings as ratios against named baselines (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/generation.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/evaluation.py

clean: ## remove the environment, the built documentation and what the demo wrote
	rm -rf $(VENV) $(OUT) site
