# make alone lists the targets. Another Python: make demo PYTHON=python3.12
PYTHON ?= python3
IMAGE := minigptv2/examples/park.png
ARGS ?=
# `make model` trains the stages with so many processes: two of one thread are faster than one of two.
# With one GPU: make model PROCESSES=1 ARGS="workers=12 compile=false"
PROCESSES ?= 2
STAGE = OMP_NUM_THREADS=1 .venv/bin/torchrun --standalone --nproc-per-node $(PROCESSES) -m minigptv2 train

.PHONY: help demo test check lint model
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## *' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' Makefile

demo: .venv/.demo  ## ask the bundled model about an image and draw the box (the first time: install what that needs)
	@.venv/bin/minigptv2 chat $(IMAGE) "[refer] red balloon" --save demo.png
	@echo "The image with its box: $$(pwd)/demo.png"

test: .venv/.dev  ## run the whole test suite (ARGS="-k boxes" for a part of it)
	@.venv/bin/python -m pytest $(ARGS)

# two processes, about as long as each other: the tests of files test_[f-z]*, and the rest
check: .venv/.dev lint  ## lint, format and the fast tests, in under two minutes on two idle cores
	@export OMP_NUM_THREADS=1; \
	  .venv/bin/python -m pytest -q -m "not slow" tests/test_[f-z]*.py & first=$$!; \
	  .venv/bin/python -m pytest -q -m "not slow" tests/test_[a-e]*.py tests/parity tests/recipes; second=$$?; \
	  wait $$first && test $$second -eq 0

lint: .venv/.dev  ## check code and layout with ruff (.venv/bin/ruff format . lays the code out)
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet .

model: .venv/.demo  ## train the bundled model from random weights; run it again to resume after a stop
	.venv/bin/minigptv2 train train_configs/tiny/pretrain_vision.yaml $(ARGS)
	$(STAGE) train_configs/tiny/stage1.yaml $(ARGS)
	$(STAGE) train_configs/tiny/stage2.yaml $(ARGS)
	$(STAGE) train_configs/tiny/stage3.yaml $(ARGS)
	rm -rf minigptv2/weights && cp -r output/tiny/stage3/model minigptv2/weights

# ---- .venv, and a stamp in it for each thing that was installed ----

define check_python
	@command -v "$(PYTHON)" >/dev/null || { printf '%s\n' 'error: "$(PYTHON)" was not found.' \
	  '  minigptv2 needs Python 3.10 or newer.' '  Name one, as in make demo PYTHON=python3.12.' >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { printf '%s\n' \
	  "error: $(PYTHON) is $$("$(PYTHON)" --version 2>&1)." '  minigptv2 needs Python 3.10 or newer.' \
	  '  Name another one, as in make demo PYTHON=python3.12.' >&2; exit 2; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { printf '%s\n' \
	  'error: $(PYTHON) cannot make virtual environments.' '  Its modules venv and ensurepip are missing.' \
	  '  Install them; on Debian and Ubuntu the package is python3-venv.' >&2; exit 2; }
endef

.venv/.made:
	$(check_python)
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv .venv
	@touch $@

define install
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$(1)" \
	  $$(.venv/bin/python -c 'import sys; print("-c constraints.txt" * (sys.version_info >= (3, 11)))')
	@touch $@
endef

.venv/.demo: .venv/.made pyproject.toml constraints.txt
	@echo "Installing what inference needs into .venv: once, some minutes, about 6 GB. pip is silent meanwhile."
	$(call install,.)

.venv/.dev: .venv/.made pyproject.toml constraints.txt
	@echo "Installing what inference and the tests need into .venv: once, some minutes, about 6 GB. pip is silent meanwhile."
	$(call install,.[dev])
	@touch .venv/.demo
