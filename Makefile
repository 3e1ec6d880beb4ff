# Everything here works on a fresh clone with python3 (3.11 to 3.13) and make; `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PYTEST_ARGS ?=

# Each of the thousands of processes that tests and bench start would compile our code and our plug-ins anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo lab test check security format bench chaos mutation image image-test release constraints clean

help: ## list these targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything that the other targets need

$(STAMP): pyproject.toml lab/pyproject.toml constraints.txt deploy/install_collection.py
	@deploy/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $@

demo: $(STAMP) ## the whole system at work: simulator, fake Proxmox, executor
	@$(BIN)/smith demo $(DEMO_ARGS)

lab: $(STAMP) ## keep simulator and fake Proxmox running to play with
	@$(BIN)/smith lab

test: $(STAMP) ## every test that needs no real Proxmox (PYTEST_ARGS adds to pytest's arguments)
	@$(BIN)/python -m pytest -n 4 --dist loadgroup -q $(PYTEST_ARGS)

check: $(STAMP) ## formatting, lint, types, layers, YAML, playbooks, dependencies
	@deploy/check.sh "$(BIN)"

security: $(STAMP) ## secrets in the repository, licences, known vulnerabilities, security tests (FULL=1: all of them)
	@deploy/security.sh $(BIN)

format: $(STAMP) ## let ruff rewrite what it can
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: $(STAMP) ## measure against baselines of the same run (BENCH_QUICK=1: two minutes)
	@$(BIN)/python -m bench $(BENCH_ARGS)

chaos: $(STAMP) ## a load of jobs under a random nemesis (JOBS, KILLS, SEED), and the proof that nothing was lost or doubled
	@PYTHONPATH=tests $(BIN)/python tests/faults/chaos.py --jobs $(or $(JOBS),300) --kills $(or $(KILLS),40) $(if $(SEED),--seed $(SEED))

mutation: ## what the tests of the ledger are worth: change it line by line, list what nobody noticed (MUTANTS; an hour)
	@deploy/mutation.sh "$(PYTHON)" $(MUTANTS)

image: ## build the container image; without a registry, on a stand-in for Debian's base unless BASE_IMAGE is set
	@deploy/image/build.sh

image-test: $(STAMP) ## build the image and test it as an operator uses it; FAULTS=1 plants faults and sees them caught
	@deploy/image/test.sh $(BIN)

release: $(STAMP) ## wheels, source archives, SBOM and checksums in dist/; IMAGE=1 adds the image, DRY_RUN=1 checks nothing
	@deploy/release.sh $(BIN)

constraints: $(STAMP) ## refresh constraints.txt for every supported Python
	@deploy/refresh_constraints.sh "$(BIN)"

clean: ## remove what the other targets made
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist bench/results
