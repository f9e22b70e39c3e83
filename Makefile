# `make demo` and `make test` are all a newcomer needs; both build .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-transfer bench speed fashion_mnist lint format pages clean
.NOTPARALLEL:  # a benchmark wants the machine for itself

demo: $(VENV)/installed
	$(BIN)/ssl-zoo data get textures
	$(BIN)/ssl-zoo ablate configs/ablation/demo.yaml

test: $(VENV)/installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

# Each recipe of configs/transfer, and DeepLab v3 and a ViT, until it knows eight pictures by heart.
test-transfer: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 -m slow tests/test_transfer_overfit.py

# A short form of what docs/performance.md has in full; six minutes, best on an idle machine.
bench: $(VENV)/installed-test fashion_mnist
	$(BIN)/python benchmarks/peers.py --short
	$(BIN)/python benchmarks/floor.py --short
	$(BIN)/python benchmarks/scaling.py --short

# What docs/performance.md has, of a CPU; 25 minutes on two cores, and only on an idle machine worth
# anything. Goes on where it was stopped, one file after the other; FORCE=1 measures all anew.
SPEED := $(patsubst %,results/speed_%.json,floor scaling data evaluation peers)
speed: $(SPEED)
$(SPEED): results/speed_%.json: | $(VENV)/installed-test fashion_mnist
	$(BIN)/python benchmarks/$*.py --out $@
ifdef FORCE
.PHONY: $(SPEED)
endif

fashion_mnist: $(VENV)/installed-test
	$(BIN)/ssl-zoo data get fashion_mnist

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('ssl_zoo needs Python >= 3.10, found ' + sys.version.split()[0] if sys.version_info < (3, 10) else 0)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps solo-learn==1.0.2  # it would bring torch 1.9
	touch $@

# What is rendered from code, configs, ledger/ and results/: docs/methods.md, docs/reproduction.md, and
# the marked blocks of README.md and docs/.
pages: $(VENV)/installed-test
	$(BIN)/python tools/methods_page.py
	$(BIN)/python tools/reading_path.py
	$(BIN)/python tools/results_blocks.py
	$(BIN)/python tools/reproduction_page.py

clean:
	rm -rf $(VENV) build dist *.egg-info
