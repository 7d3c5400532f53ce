# Both commands work on a fresh machine with Python 3.11 or newer: they make the virtual environment,
# install the pinned versions into it and run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
JOBS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_CONSTRAINT = $(CURDIR)/constraints.txt

ZOO = OMP_NUM_THREADS=1 $(BIN)/python -m aimgraph zoo
ZOO_JOBS ?= $(JOBS)
ZOO_OUT ?= out/zoo
LIBRARIES := --source torchvision --source timm --source zoo

.PHONY: demo test test-all check compat install bench frozen table performance evidence coverage transform-time zoo zoo-ci zoo-source zoo-expected clean

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py --out out/demo

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -q -m "not slow"
	$(MAKE) zoo-ci

# Those marked slow, too.
test-all: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -q
	$(MAKE) zoo-ci

# All tests with another version of torch: `make compat TORCH=2.9.1`. What depends on torch's version is not pinned
# then: torchvision asks for one torch, and torch may ask for one sympy.
COMPAT := $(CURDIR)/.venv-compat-$(TORCH)
compat:
	test -n "$(TORCH)" || { echo "which torch? make compat TORCH=2.9.1"; exit 2; }
	$(PYTHON) -m venv $(COMPAT)
	grep -vE "^(torch|torchvision|sympy)==" constraints.txt > $(COMPAT)/constraints.txt
	echo "torch==$(TORCH)" >> $(COMPAT)/constraints.txt
	PIP_CONSTRAINT=$(COMPAT)/constraints.txt $(COMPAT)/bin/python -m pip install --quiet setuptools torch
	PIP_CONSTRAINT=$(COMPAT)/constraints.txt $(COMPAT)/bin/python -m pip install --quiet --editable ".[dev]"
	OMP_NUM_THREADS=1 $(COMPAT)/bin/python -m pytest -n $(JOBS) -q

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(INSTALLED)

transform-time: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/transform_time.py --out benchmarks/results

bench: $(INSTALLED)
	$(BIN)/python benchmarks/cost.py --out benchmarks/results

frozen: $(INSTALLED)
	$(BIN)/python -m benchmarks.frozen --out benchmarks/results

table: $(INSTALLED)
	$(BIN)/python benchmarks/seed_networks.py --out benchmarks/results

# Tables and picture of docs/evidence.md, from the results of experiments; it runs none.
evidence: $(INSTALLED)
	$(BIN)/python -m benchmarks.evidence

performance: $(INSTALLED)
	$(BIN)/python -m benchmarks.performance

coverage: $(INSTALLED)
	$(BIN)/python benchmarks/coverage.py

# A small and a middle model of every family, compared with what is expected of them.
zoo-ci: $(INSTALLED)
	$(ZOO) check --manifest models_zoo/ci.csv --expected models_zoo/expected/ci.csv --jobs $(ZOO_JOBS) --out $(ZOO_OUT)/ci

# After a change of the compiler or of the manifests: which models those are, and what is expected of them.
zoo-expected: $(INSTALLED)
	$(ZOO) list --ci --out models_zoo/ci.csv
	rm -f models_zoo/expected/ci.csv
	-$(ZOO) check --manifest models_zoo/ci.csv --update models_zoo/expected/ci.csv --jobs $(ZOO_JOBS) --out $(ZOO_OUT)/ci

# Those that zoo-ci computes with, as plain PyTorch in a process of its own.
zoo-source: $(INSTALLED)
	$(ZOO) check --manifest models_zoo/ci.csv --rows numeric --level source --expected models_zoo/expected/source.csv \
		--jobs $(ZOO_JOBS) --out $(ZOO_OUT)/source

# Every model of every library, those of up to 100 million parameters with values, and the smallest of every family
# through ONNX. It takes hours, and goes on where it was interrupted.
zoo: $(INSTALLED)
	failed=0; for level in structure "numeric --largest 100" "onnx --smallest" "widen --smallest"; do \
		$(ZOO) check $(LIBRARIES) --level $$level --jobs $(ZOO_JOBS) --out $(ZOO_OUT)/$${level%% *} || failed=1; \
	done; exit $$failed

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet setuptools torch
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) .venv-compat-* out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
