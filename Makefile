# Targets for people and for CI; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# The sandbox's own inventory, which depends on how it was made.
ENVIRONMENT ?= $(or $(shell cat .sandbox/environment 2>/dev/null),sandbox)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(VENV)/.complete ## Create the Python environment from the hashed locks (again only when they change)

$(VENV)/.complete: requirements/test.txt
	@PYTHON=$(PYTHON) scripts/setup.sh $(VENV) $<
	@touch $@

.PHONY: engine
engine: ## Make sure of a Docker engine and the test host image
	@scripts/engine.sh
	@scripts/test-image.sh

.PHONY: artifacts
artifacts: setup ## Fill the artifact store (TOOL=name, ARCH=arm64 for one)
	@$(BIN)/python -m artifacts.store ensure $(if $(ARCH),--arch $(ARCH)) $(TOOL)

.PHONY: pin
pin: setup ## Add a version to the catalogue: make pin TOOL=x VERSION=y
	@$(BIN)/python -m artifacts.store pin "$(TOOL)" "$(VERSION)"

.PHONY: sandbox
sandbox: setup engine ## Create or update the sandbox and prove that it works (FULL=1: with logs, traces, Pulsar and the bridge)
	@$(BIN)/python scripts/sandbox.py $(if $(FULL),full,up)

.PHONY: sandbox-down
sandbox-down: setup ## Remove the sandbox and everything it made
	@$(BIN)/python scripts/sandbox.py down

.PHONY: doctor
doctor: setup ## Print the health of a platform (ENVIRONMENT=sandbox)
	@ANSIBLE_CALLBACKS_ENABLED=ansible.builtin.minimal $(BIN)/ansible-playbook playbooks/doctor.yml -i inventories/$(ENVIRONMENT)

.PHONY: drill
drill: setup ## Prove that the newest backup can be restored (ENVIRONMENT=sandbox)
	@$(BIN)/ansible-playbook playbooks/drill.yml -i inventories/$(ENVIRONMENT)

.PHONY: lint
lint: setup ## Check style and the repository's own rules
	@$(BIN)/python scripts/lint.py

.PHONY: unit
unit: setup ## Run the Python tests
	@$(BIN)/pytest --cov --cov-fail-under=90

.PHONY: test
test: setup engine ## Run everything: lint, unit tests and scenarios (ROLE=name for one scenario)
	@$(BIN)/python scripts/run_tests.py $(ROLE)

.PHONY: docs
docs: setup ## Write docs/reference/ from argument_specs, defaults and modules
	@$(BIN)/python scripts/docs.py

.PHONY: dashboards
dashboards: setup ## Write files/dashboards/ and files/alerts/slo.yml from their tables
	@$(BIN)/python -m scripts.dashboards
	@$(BIN)/python scripts/slo.py

.PHONY: bench
bench: setup engine ## Measure and write bench/results/
	@$(BIN)/python tests/bench/run.py

.PHONY: soak
soak: setup engine ## Break a platform at random for a while and count what became of every request: make soak MINUTES=10 SEED=1
	@$(BIN)/molecule converge -s faults
	@$(BIN)/python molecule/faults/soak.py --seed $(or $(SEED),1) --minutes $(or $(MINUTES),10)

.PHONY: soak-restore
soak-restore: setup engine ## Restore again and again, failing at each step in turn: make soak-restore ROUNDS=14 SEED=1
	@$(BIN)/molecule converge -s restore
	@$(BIN)/molecule verify -s restore
	@$(BIN)/python molecule/restore/soak.py --seed $(or $(SEED),1) --rounds $(or $(ROUNDS),14)

.PHONY: soak-bridge
soak-bridge: setup engine ## Break n8n, Pulsar and the bridge at random and count what became of every event: make soak-bridge MINUTES=10 SEED=1
	@$(BIN)/molecule converge -s bridge_faults
	@$(BIN)/python molecule/bridge_faults/soak.py --seed $(or $(SEED),1) --minutes $(or $(MINUTES),10)

.PHONY: lock
lock: setup ## Renew the hashed Python locks
	@scripts/lock.sh

.PHONY: clean
clean: sandbox-down ## Remove the sandbox, test hosts and the Python environment; the artifact store stays
	@docker ps -aq --filter name=n8n-platform- | xargs -r docker rm -f >/dev/null
	@rm -rf $(VENV) .cache
