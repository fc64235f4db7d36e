# Everything runs in .venv, which these rules make; nothing needs to be activated.
PYTHON ?= python3
BIN := .venv/bin
# For what the commands start themselves. Make 3.81, which macOS has, does not find its own commands there.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help run test test-all lint review check doctor chat setup clean

help:  ## Show this list
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ { printf "%-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup  ## Set up, then run the pipeline: data to fine-tuned, measured model
	$(BIN)/dvc repro

test: setup  ## Set up, then run the fast tests, two at a time
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m "not slow"

test-all: setup  ## Set up, then run all tests, also those from end to end, which take minutes each
	$(BIN)/pytest --numprocesses 2 --dist worksteal $(ONLY)

lint: setup  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

review: setup  ## Compare with where the branch began, or with make review BASE=revision or experiment, as Markdown
	@$(BIN)/python -m stages.review $(BASE)

check: setup  ## Check that dvc.lock and the reports belong to the code, parameters and data, without running them
	@$(BIN)/python -m stages.check

chat: setup  ## Talk to the tuned model; `python -m stages.chat --base` lets the base answer too
	@$(BIN)/python -m stages.chat

doctor:  ## Say what this machine can do, and what is missing; needs no set-up
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m stages.doctor

setup: .venv/complete  ## Make .venv with the pinned packages (nothing to do when it is there)

# The mark is written last: a set-up that was cut off is done again.
.venv/complete: $(wildcard constraints*.txt) $(wildcard requirements*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; name one with make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -c constraints-dev.txt -r requirements.txt -r requirements-dev.txt \
		$(if $(shell command -v nvidia-smi 2>/dev/null),-r requirements-cuda.txt)
	$(BIN)/pip install --quiet --no-deps -c constraints.txt -r requirements-unsloth.txt
	@touch $@

# Any that are already done are left; to do some again: make mutants ONLY='stages.split.* stages.scoring.*'
.PHONY: mutants
mutants: export OMP_NUM_THREADS = 1
mutants: export TOKENIZERS_PARALLELISM = false
mutants: export PYTHONWARNDEFAULTENCODING = 1
mutants: export PYTHONWARNINGS = ignore::EncodingWarning
mutants: setup  ## Change the code in thousands of small ways, and count by module how many a test notices (hours)
	$(BIN)/python -m tests.mutants $(ONLY)

clean:  ## Remove .venv, caches and the converted base model; data, models and reports stay
	rm -rf .venv .state .pytest_cache .mypy_cache .ruff_cache .hypothesis mutants unsloth_compiled_cache
	find stages tests -name __pycache__ -type d -prune -exec rm -rf {} +
