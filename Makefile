# Everything runs in .venv, which these rules create; there is nothing to activate.
PYTHON ?= python3
BIN := .venv/bin
# For processes that the commands start. Make 3.81 on macOS ignores this PATH, so recipes name $(BIN) themselves.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help run test test-all lint docs review compare check doctor gpu-check chat serve setup clean

help:  ## List the targets
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ { printf "%-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup  ## Run the pipeline: from data to a fine-tuned, evaluated model
	$(BIN)/dvc repro

test: setup  ## Run the fast tests, two at a time
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m "not slow"

test-all: setup  ## Run all tests, including the end-to-end ones, which take minutes each
	$(BIN)/pytest --numprocesses 2 --dist worksteal $(ONLY)

lint: setup  ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup  ## Write docs/metrics.md, docs/params.md, its JSON schema and the comments of params.yaml from the code
	@$(BIN)/python -m stages.commands.docs

review: setup  ## Report what the branch changed, as Markdown; BASE=REVISION compares with a revision or experiment
	@$(BIN)/python -m stages.commands.review $(BASE)

compare: setup  ## List the experiments: what changed, loss, chrF, facts right, verdict
	@$(BIN)/python -m stages.commands.compare

check: setup  ## Check that dvc.lock and the reports match the code, parameters and data; runs no stage
	@$(BIN)/python -m stages.commands.check

chat: setup  ## Chat with the tuned model; `python -m stages.commands.chat --base` adds the base model's answers
	@$(BIN)/python -m stages.commands.chat

serve: setup  ## Serve OpenAI's fine-tuning API from this machine, for any client; .state/endpoint/key has the key
	@$(BIN)/python -m stages.commands.serve

doctor:  ## Report what this machine can do and what is missing; needs no set-up
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m stages.commands.doctor

gpu-check:  ## Test and measure what only a GPU can show, in at most eight minutes, without a network
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tests.gpu_check

setup: .venv/complete  ## Create .venv with the pinned packages, unless it is up to date

# The marker is written last, so an interrupted set-up is repeated.
.venv/complete: $(wildcard constraints*.txt) $(wildcard requirements*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; name one with make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -c constraints-dev.txt -r requirements.txt -r requirements-dev.txt \
		$(if $(shell command -v nvidia-smi 2>/dev/null),-r requirements-cuda.txt)
	$(BIN)/pip install --quiet --no-deps -c constraints.txt -r requirements-unsloth.txt
	@touch $@

# Those with a result are skipped; to try all of some modules: make mutants ONLY='stages.split.* stages.metrics.scoring.*'
.PHONY: mutants
mutants: export OMP_NUM_THREADS = 1
mutants: export TOKENIZERS_PARALLELISM = false
mutants: export PYTHONWARNDEFAULTENCODING = 1
mutants: export PYTHONWARNINGS = ignore::EncodingWarning
mutants: setup  ## Change the code in thousands of small ways, and count by module how many a test notices (an hour or two)
	$(BIN)/python -m tests.mutants $(ONLY)

.PHONY: fuzz
INPUTS ?= 10000
fuzz: setup  ## Change real inputs in many small ways; each must end in a result or in a sentence (minutes)
	$(BIN)/python -m tests.fuzz --inputs $(INPUTS) $(ONLY)

clean:  ## Remove .venv, caches and the converted base model; keep data, models, reports and .state/endpoint
	if [ -d .state ]; then find .state -mindepth 1 -maxdepth 1 ! -name endpoint -exec rm -rf {} +; fi
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis mutants unsloth_compiled_cache
	find stages tests -name __pycache__ -type d -prune -exec rm -rf {} +
