# Every target sets up .venv first, which takes no time when nothing changed.
# ARGS is handed on: make demo ARGS=--help, make test ARGS="-k budget"

BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test soak bench lint types format

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "make %-8s  %s\n", $$1, $$2 }'

install: ## set up .venv: compiles llama.cpp the first time, minutes; PYTHON=... names a Python
	@python=$$(sh scripts/python.sh) && "$$python" scripts/install.py

demo: install ## a real local model, a hosted one or its stand-in, and what every hand-over costs
	@$(BIN)/langchain-relay demo $(ARGS)

# No xdist: a decoding test uses all cores, and two such processes slow each other down a hundredfold.
test: install ## all tests, examples and notebooks, with reduced counts
	@$(BIN)/python -m pytest tests/unit_tests tests/integration_tests $(ARGS)

soak: install ## all tests with the full counts: hours
	@RELAY_SOAK=1 $(BIN)/python -m pytest --timeout=3600 tests/unit_tests tests/integration_tests $(ARGS)

bench: ## speed against raw llama.cpp and others; ARGS="decode --rounds 3", ARGS=--help
	@python=$$(sh scripts/python.sh) && "$$python" scripts/install.py bench
	@$(BIN)/python -m benchmarks.bench $(ARGS)

lint: install ## what ruff finds, and whether the code is formatted
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: install ## mypy --strict
	@$(BIN)/mypy

format: install ## format the code and mend what ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
