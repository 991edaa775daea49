# Each target does its own set-up in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests of one file share costly fixtures, so a file stays in one process. A quarter of their time
# they wait for services and deadlines, so that four processes keep two cores busy. Files keep
# their order: sorted by their numbers of tests, the longest ones of few tests would come last.
PARALLEL ?= -n 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-long lint docs bench clean

# make demo               frames that edgexnas simulates
# make demo DATA=PATH     your frames: a file or a folder
demo: $(STAMP)
	$(BIN)/edgexnas demo --output runs/demo $(if $(DATA),--data $(DATA))

test: $(STAMP) lint
	$(BIN)/python -m pytest $(PARALLEL)

# What takes minutes: every interpreter, clusters on one machine, long searches, grains; and
# examples that no run has seen.
test-long: $(STAMP) .readers/.installed lint
	EDGEXNAS_READERS=$(CURDIR)/.readers/bin/python $(BIN)/python -m pytest $(PARALLEL) -m "long or not long" --timeout=1800 \
		--hypothesis-profile=new-examples

# Programs that read our forms, whose licences and dependencies stay apart.
.readers/.installed: tests/forms/readers.txt
	$(PYTHON) -m venv .readers
	.readers/bin/python -m pip install --quiet -r tests/forms/readers.txt
	.readers/bin/python -m pip install --quiet --no-deps midas-transforms==0.12.0
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation site, in build/site/html; a warning is an error.
docs: $(STAMP)
	$(BIN)/python tools/build_site.py

# Side by side on this machine, with what `make demo` left; writes docs/results/.
bench: $(STAMP) runs/demo/bragg.edgex
	$(BIN)/python device/bench_frames.py runs/demo --output docs/results/frames-cpu.md
	$(BIN)/python device/bench_decoding.py --page docs/results/decoding.md
	$(BIN)/python host/bench_pipelines.py runs/demo --output docs/results/pipelines.md

runs/demo/bragg.edgex:
	$(MAKE) demo

$(STAMP): pyproject.toml constraints.txt tests/tensorrt_stubs.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "edgexnas needs Python 3.10 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python tests/tensorrt_stubs.py
	touch $@

clean:
	rm -rf $(VENV) .readers runs dist build
