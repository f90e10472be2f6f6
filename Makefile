# One configuration everywhere: the demo, the tests and CI share one build.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CONFIGURATION := release
CLOUD := $(CURDIR)/.ycloud
YCLOUD := .build/$(CONFIGURATION)/ycloud
SWIFT_FOLDERS := Package.swift Sources Tests Benchmarks

.PHONY: help dependencies protos kubernetes images peers build build-tests test check check-kubernetes check-arm64 \
	fuzz sanitize format bench docs demo up down clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dependencies: ## Install the Debian packages that are missing
	@scripts/install-dependencies.sh

kubernetes: dependencies ## Build kube-apiserver and kube-controller-manager once (7 minutes, then cached)
	@scripts/build-kubernetes.sh

images: dependencies ## Build the Debian and the tiny image once
	@images/build-tiny.sh
	@images/build-debian.sh

peers: dependencies ## Make the Python environment with other people's servers and clients for the tests
	@scripts/test-venv.sh

build: dependencies ## Build ycloud and bmctl
	@swift build -c $(CONFIGURATION)

build-tests: dependencies
	@swift build -c $(CONFIGURATION) --build-tests

test: build-tests kubernetes peers ## Run all tests, with real components (as root)
	@images/build-tiny.sh
	@scripts/test.sh $(CONFIGURATION)

SECONDS := 60

fuzz: dependencies ## Give the data plane any bytes under libFuzzer, SECONDS=60 for each target
	@scripts/fuzz.sh $(SECONDS)

sanitize: build ## Run the data plane's tests with the address and the thread sanitizer
	@scripts/sanitize.sh

check: dependencies ## Check format, lint, warnings, scripts and the reference
	@swift format lint --strict --parallel --recursive $(SWIFT_FOLDERS)
	@for script in $$(git ls-files '*.sh' .ci/run); do bash -n "$$script"; done
	@swift build -c $(CONFIGURATION) --build-tests
	@! [ -d docs/reference ] || python3 scripts/reference.py --check

check-kubernetes: build kubernetes ## Run a machine with its custom resources in a present-day API server's code (as root)
	@images/build-tiny.sh
	@scripts/check-kubernetes.sh

check-arm64: dependencies ## Compile for arm64 on amd64, and run what tests user emulation can (as root)
	@scripts/check-arm64.sh

format: ## Rewrite the sources in the project's format
	@swift format --in-place --parallel --recursive $(SWIFT_FOLDERS)

bench: build kubernetes images ## Measure, beside peers in the same run
	@scripts/bench.sh

protos: dependencies ## Write Sources/OPI from protos/ (its result is committed)
	@scripts/protos.sh

docs: build ## Write docs/reference from the schemas and the programs' help
	@python3 scripts/reference.py

demo: build kubernetes images ## Start a cloud and boot a Debian server from a cloned cloud disk
	@scripts/demo.sh $(CLOUD)

up: build kubernetes ## Start the local cloud in .ycloud
	@$(YCLOUD) up --dir $(CLOUD)

down: ## Stop and remove the local cloud in .ycloud
	@if [ -x $(YCLOUD) ]; then $(YCLOUD) down --purge --dir $(CLOUD); \
	elif [ -d $(CLOUD) ]; then echo "$(YCLOUD) is not there to stop $(CLOUD); run 'make build' first" >&2; exit 1; fi

clean: down ## Remove the cloud and what was built; the caches outside the checkout stay
	@rm -rf .build .build-*
