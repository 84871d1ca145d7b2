# Each target sets itself up in .venv and reuses what is there; nothing else of the machine changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.mkd-installed
SOURCES := $(wildcard csrc/*) pyproject.toml constraints.txt

.PHONY: demo test bench lint clean

demo: $(STAMP)
	$(BIN)/mkd-fast distill recipes/home_intents.toml

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

bench: $(STAMP)
	$(BIN)/mkd-fast bench --plot

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h
	$(BIN)/mypy -p mkd_fast

# torch comes first: the C++ kernels are compiled against the headers of the torch in use.
$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch numpy scikit-build-core cmake ninja
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
