# Everything a newcomer needs. PYTHON may name another 3.11 or 3.12.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the service needs, and with it what tests, linters and benchmarks do.
DEMO := $(VENV)/.demo
STAMP := $(VENV)/.installed
# Tests start hundreds of Python processes: compiling everything anew in each takes longer than they do.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest

.PHONY: demo run test checks lint unit parts coverage e2e soak-tests fleet-scenarios api-check memory-table bench-wav2lip bench-ltx2 bench-mesh bench-transports bench-neighbours bench-hostile bench-head bench-live bench-chain bench-fleet bench-first-step bench-api bench-install clean tables openapi constraints

demo: $(DEMO)  ## Start everything, make real videos through the HTTP API, stop everything
	$(BIN)/video-api demo

run: $(DEMO)  ## Keep the service up until Ctrl-C
	$(BIN)/video-api up

test: export TEST_SKIPS := $(CURDIR)/.pytest_cache/skips
test: $(STAMP)  ## All tests; ends with what was skipped, and why
	mkdir -p $(dir $(TEST_SKIPS)) && rm -f $(TEST_SKIPS)
	timeout --foreground 2700 $(MAKE) --no-print-directory checks parts e2e
	$(BIN)/python -m tests.skips

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Each has one core.
checks: $(STAMP)
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint unit

unit: $(STAMP)  ## Pure logic: no process, no database, no torch
	$(PYTEST) $(COVER) tests/unit

# Four workers on two cores: many of these tests wait for time-outs of others.
parts: $(STAMP)  ## Each part on the real thing it works with: PostgreSQL, ffmpeg, torch, sockets, network namespaces
	$(PYTEST) $(COVER) -q -n 4 --dist loadgroup tests/parts

# Apart from ``make test``, which it would make half as long again.
coverage: export COVER := --cov --cov-append --cov-report=
coverage: $(STAMP)  ## Lines that neither unit nor parts run, in the tests' own processes
	rm -f .coverage
	$(MAKE) --no-print-directory unit parts
	$(BIN)/coverage report

# Clusters of several machines first, and each alone: the rest shares a service that runs beside it.
e2e: $(STAMP)  ## A real Ray cluster; kills processes
	$(PYTEST) --timeout=600 -o faulthandler_timeout=1000 tests/e2e/test_cluster.py
	$(PYTEST) --timeout=600 -o faulthandler_timeout=1000 tests/e2e/test_first_day.py
	$(PYTEST) --timeout=600 -o faulthandler_timeout=1000 tests/e2e tests/chaos \
		--ignore=tests/e2e/test_cluster.py --ignore=tests/e2e/test_first_day.py

soak-tests: $(STAMP)  ## unit and parts twenty times: quiet, beside busy loops, and without a terminal in random order
	PYTEST="$(PYTEST)" tests/soak

fleet-scenarios: $(STAMP)  ## 500 random fleets on virtual time; make unit has 25
	FLEET_EXAMPLES=500 $(PYTEST) --timeout=1800 -o faulthandler_timeout=1900 tests/unit/cluster/fleet/test_scenarios.py

api-check: $(STAMP)  ## The API against its OpenAPI schema: 100 requests a route; make parts has 3
	API_CHECK_EXAMPLES=100 $(PYTEST) --timeout=3600 -o faulthandler_timeout=3700 tests/parts/serve_app/api/test_conformance.py

memory-table: $(STAMP)  ## What LTX-2 needs of a card, counted on none, against its plan; writes docs/memory.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/memory.py

bench-wav2lip: $(STAMP)  ## Stage times, generator against eager fp32, memory of a long clip
	$(BIN)/python tests/benchmarks/wav2lip.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/wav2lip.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/wav2lip.py --memory

bench-ltx2: $(STAMP)  ## What the service adds to diffusers; where there is CUDA, LTX-2.3 by stage; a floor on paper
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/ltx2.py

bench-transports: $(STAMP)  ## The mesh's transports against asyncio's over 20 ms and 500 Mbit/s; as root
	$(BIN)/python tests/benchmarks/transports.py

bench-mesh: $(STAMP)  ## Against a cable and OpenSSH, in network namespaces; as root
	$(BIN)/python tests/benchmarks/mesh.py

bench-hostile: $(STAMP)  ## What hostile clients cost everybody else
	$(BIN)/python tests/benchmarks/hostile.py

bench-first-step: $(STAMP)  ## From a posted job to its first step on a rented machine, step by step; as root
	$(BIN)/python tests/benchmarks/first_step.py

bench-head: $(STAMP)  ## Memory and CPU of an idle head; as root
	$(BIN)/python tests/benchmarks/head.py

bench-live: $(STAMP)  ## From a commit to a client over 500 event streams, beside reads
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/live.py

bench-chain: $(STAMP)  ## What a chain adds between its members, by the database's clock
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/chain.py

bench-fleet: $(STAMP)  ## $ a video, and waits, by how many nodes are wished for; virtual time, two minutes
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/fleet.py

bench-api: $(STAMP)  ## Reads and creates a second, against bare uvicorn and psycopg; and what Serve's proxy costs
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/api.py

bench-install: $(STAMP)  ## What a client adds to httpx and rich, and how long it takes to start
	$(BIN)/python tests/benchmarks/install.py

bench-neighbours: $(STAMP)  ## An honest job alone and beside users who do what they can
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/neighbours.py

tables: $(STAMP)  ## The README's tables of codes, made from the code
	$(BIN)/python -m serve_app.documentation README.md

openapi: $(STAMP)  ## docs/openapi.json, made from the code
	$(BIN)/python -m serve_app.api.asgi docs/openapi.json

constraints: $(STAMP)  ## Write down the versions that were tested
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) .data out

# torch first and by its exact version: with no torch installed, pip would pick a build with CUDA for other packages.
$(DEMO): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 12), "Python 3.11 or 3.12 is needed"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --progress-bar off torch==2.13.0
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e '.[demo]'
	touch $@

$(STAMP): $(DEMO)
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e '.[dev]'
	touch $@
