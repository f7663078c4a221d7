# Two commands: `make demo` and `make test`. Both set up everything they need from a bare clone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
UV     := $(shell command -v uv 2>/dev/null)
RUN    ?= runs/demo

.PHONY: demo test check lint types layers docs lock clean help

demo: $(READY)  ## meta-train on the sinusoid family with measured rates and write runs/demo/report.html
	$(BIN)/metastep train sinusoid --out $(RUN) --overwrite
	$(BIN)/metastep evaluate $(RUN)
	@echo "open $(RUN)/report.html"

test: check docs  ## everything CI checks: style, types, layers, tests, examples, docs
	$(BIN)/pytest -n auto

check: lint types layers

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

layers: $(READY)
	$(BIN)/lint-imports

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock:  ## pin every dependency again (needs uv)
	uv pip compile pyproject.toml --group dev --extra tensorboard --universal --python-version 3.11 \
	  --fork-strategy fewest --generate-hashes --no-emit-index-url --no-annotate \
	  --custom-compile-command "make lock" --upgrade -o requirements.lock

# One environment for everything; rebuilt when the lock file or the package metadata changes.
$(READY): requirements.lock pyproject.toml
ifdef UV
	test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) $(VENV)
	uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
else
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
endif
	touch $(READY)

clean:
	rm -rf $(VENV) site runs .ruff_cache .import_linter_cache .hypothesis

help:
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'
