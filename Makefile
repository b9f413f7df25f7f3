# Everything a newcomer needs. PYTHON may name another 3.11 or 3.12.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo run test unit e2e lint bench-wav2lip bench-mesh bench-neighbours bench-hostile bench-head clean constraints

demo: $(STAMP)  ## Start everything, make real videos through the HTTP API, stop everything
	$(BIN)/video-api demo

run: $(STAMP)  ## Keep the service up until Ctrl-C
	$(BIN)/video-api up

test: lint unit e2e  ## All tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(STAMP)  ## Without Ray
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile tests/unit tests/integration

e2e: $(STAMP)  ## A real Ray cluster; kills processes
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/e2e/test_cluster.py
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/e2e tests/chaos --ignore=tests/e2e/test_cluster.py

bench-wav2lip: $(STAMP)  ## Stage times, generator against eager fp32, memory of a long clip
	$(BIN)/python tests/benchmarks/wav2lip.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/wav2lip.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/wav2lip.py --memory

bench-mesh: $(STAMP)  ## Against a cable and OpenSSH, in network namespaces; as root
	$(BIN)/python tests/benchmarks/mesh.py

bench-hostile: $(STAMP)  ## What hostile clients cost everybody else
	$(BIN)/python tests/benchmarks/hostile.py

bench-head: $(STAMP)  ## Memory and CPU of an idle head; as root
	$(BIN)/python tests/benchmarks/head.py

bench-neighbours: $(STAMP)  ## An honest job alone and beside users who do what they can
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/neighbours.py

constraints: $(STAMP)  ## Write down the versions that were tested
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) .data out

# torch first and by its exact version: with no torch installed, pip would pick a build with CUDA for other packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 12), "Python 3.11 or 3.12 is needed"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --progress-bar off torch==2.13.0
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e '.[local,gpu,demo,dev]'
	touch $(STAMP)
