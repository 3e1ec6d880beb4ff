# Everything here works on a fresh clone with python3 (3.11 to 3.13) and make; `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PYTEST_ARGS ?=
# Tests of single modules and actions. They have a run of their own, because pytest-ansible is off in every other run.
MODULE_TESTS := tests/playbooks/modules
MODULE_PYTEST = $(BIN)/python -m pytest -q -p pytest_ansible.plugin --ansible-unit-inject-only \
  --inventory inventory/proxmox.yml --host-pattern proxmox
# What `make slowest` records: one line for each test.
COSTS := .pytest_cache/costs.jsonl

# With it, each process that tests and bench start would compile our code and plug-ins again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo lab man test contract slowest browser-test collection-test check security format bench chaos real-core kill-matrix many-machines explore strangers mutation fuzz image image-test lab-test release release-test constraints clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv with everything that the other targets need

$(STAMP): pyproject.toml lab/pyproject.toml constraints.txt deploy/install_collection.py
	@deploy/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $@

demo: $(STAMP) ## run the whole system: simulator, Proxmox stand-in, executor
	@$(BIN)/smith demo $(DEMO_ARGS)

lab: $(STAMP) ## run simulator and Proxmox stand-in until Ctrl-C, with their files in .lab
	@$(BIN)/smith lab --folder .lab

man: $(STAMP) ## write the generated pages: the manual page executor/man/smith.1 and the tables in docs/
	@$(BIN)/python docs/generate.py

test: $(STAMP) ## run every test that needs no real Proxmox (PYTEST_ARGS: more arguments for pytest)
	@$(if $(PYTEST_ARGS),,$(MODULE_PYTEST) $(MODULE_TESTS))
	@$(if $(findstring $(MODULE_TESTS),$(PYTEST_ARGS)),$(MODULE_PYTEST),$(BIN)/python -m pytest -n 4 --dist loadgroup -q) $(PYTEST_ARGS)

contract: $(STAMP) ## check the simulator, or FULCRUM_URL with FULCRUM_ADMIN_TOKEN_FILE, against recorded answers (RECORD=1: record)
	@$(BIN)/python -m pytest -q -n 0 tests/contract \
	  $(if $(FULCRUM_URL),--fulcrum-url $(FULCRUM_URL) --fulcrum-admin-token-file $(FULCRUM_ADMIN_TOKEN_FILE)) \
	  $(if $(FULCRUM_TIMEOUT_S),--job-timeout $(FULCRUM_TIMEOUT_S)) $(if $(RECORD),--record) \
	  $(if $(FULCRUM_RESTART_COMMAND),--restart-command "$(FULCRUM_RESTART_COMMAND)")

slowest: $(STAMP) ## measure each test, write the slowest into CONTRIBUTING.md (RECORD: a file of an earlier run)
	@if [ -z "$(RECORD)" ]; then mkdir -p $(dir $(COSTS)); rm -f $(COSTS); $(MAKE) test PYTEST_ARGS="--costs $(COSTS) $(PYTEST_ARGS)"; fi
	@$(BIN)/python tests/support/costs.py $(or $(RECORD),$(COSTS)) --write CONTRIBUTING.md

browser-test: $(STAMP) ## test the pages in a real browser, with screenshots in .cache/browser (FILES: some of tests/browser/*.test.js)
	@deploy/browser_test.sh $(BIN) $(FILES)

collection-test: $(STAMP) ## install the Ansible collection as a user does, test it and run `ansible-test sanity`
	@deploy/collection_test.sh "$(BIN)"

check: $(STAMP) ## check formatting, lint, types, layers, dependencies, YAML, playbooks
	@deploy/check.sh "$(BIN)"

security: $(STAMP) ## check for secrets, licences, known vulnerabilities; run the security tests (FULL=1: all of them)
	@deploy/security.sh $(BIN)

format: $(STAMP) ## format the code and fix lint errors with ruff
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: $(STAMP) ## run the benchmarks (BENCH_QUICK=1: two minutes; BENCH_ARGS=--help: parts and sizes)
	@$(BIN)/python -m bench $(BENCH_ARGS)

chaos: $(STAMP) ## run jobs with random faults (JOBS, KILLS, SEED, DATABASE), then check that none was lost or done twice
	@PYTHONPATH=tests $(BIN)/python -m faults.chaos --jobs $(or $(JOBS),300) --kills $(or $(KILLS),40) $(if $(SEED),--seed $(SEED)) --database $(or $(DATABASE),sqlite)

real-core: $(STAMP) ## run jobs on your FulcrumCore (FULCRUM_BINARY) while it and its PostgreSQL are killed (JOBS, KILLS, SEED)
	@$(if $(FULCRUM_BINARY),,$(error FULCRUM_BINARY is not set: name the program of a FulcrumCore))
	@PYTHONPATH=tests $(BIN)/python -m faults.real_core --binary $(FULCRUM_BINARY) --jobs $(or $(JOBS),300) --kills $(or $(KILLS),30) $(if $(SEED),--seed $(SEED))

kill-matrix: $(STAMP) ## kill each kind of process at each point of a create, start, update and delete (MATRIX_ARGS=--help)
	@PYTHONPATH=tests $(BIN)/python -m faults.kill_matrix $(MATRIX_ARGS)

many-machines: $(STAMP) ## run creates on three machines that are killed, suspended and cut off (JOBS, SEED); needs root and iproute2
	@PYTHONPATH=tests $(BIN)/python -m faults.many_machines --jobs $(or $(JOBS),300) $(if $(SEED),--seed $(SEED))

strangers: $(STAMP) ## run every action while VMs move, vanish and lock and answers are lost (RUNS, SEED); records in .cache
	@STRANGER_RUNS=$(or $(RUNS),500) STRANGER_SEED=$(or $(SEED),0) STRANGER_RECORD=$(CURDIR)/.cache/strangers.jsonl \
		$(BIN)/python -m pytest -q -p no:cacheprovider -n 0 tests/playbooks/test_disturbed_runs.py

explore: $(STAMP) ## explore every order of events of claims, leases, runs and reports (FAULTS, DEPTH)
	@PYTHONPATH=tests $(BIN)/python -m protocol $(or $(FAULTS),2) $(or $(DEPTH),16)

mutation: ## mutation tests of the job queue, outbox, mappings, claims, outcomes and reporter (MUTANTS; hours)
	@deploy/mutation.sh "$(PYTHON)" $(MUTANTS)

fuzz: ## fuzz the parsers of outside text, SECONDS (120) each, all or those of PARSERS
	@deploy/fuzz.sh "$(PYTHON)" $(or $(SECONDS),120) $(PARSERS)

image: ## build the container image without a registry, on a local Debian base unless BASE_IMAGE is set
	@deploy/image/build.sh

image-test: $(STAMP) ## build the image and test it as an operator uses it; FAULTS=1 also tests images with a fault
	@deploy/image/test.sh $(BIN)

lab-test: $(STAMP) ## run our own lab tests with `smith lab-test`, in the lab of LAB_PROXMOX_* or on a stand-in
	@$(BIN)/smith lab-test

release: $(STAMP) ## build every part of a release in dist/, with checksums; IMAGE=0: without image, DRY_RUN=1: without checks
	@deploy/release.sh $(BIN)

release-test: $(STAMP) ## build a release without the image, and install its offline bundle without network
	@$(BIN)/python -m pytest -q tests/release

constraints: $(STAMP) ## update constraints.txt for every supported Python
	@deploy/refresh_constraints.sh "$(BIN)"

clean: ## remove the files that the other targets create
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist bench/results .cache/bench
