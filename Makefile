# Everything is done by cargo and two programs of ours (crates/xtask, e2e); this file only names the ways in.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help check fmt lint unit generated test fuzz bench faults demo demo-down cluster shell images crds manifests metrics tools clean

export GOTOOLCHAIN := local
# Build artefacts and tools live outside of the clone only where they are expensive to make again.
CACHE := $(if $(LARDER_CACHE),$(LARDER_CACHE),$(HOME)/.cache/larder)
CARGO := cargo
LAB := target/release/larder-e2e
XTASK := $(CARGO) run --quiet --release -p larder-xtask --

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

check: fmt lint generated unit ## the quick inner loop: format, lints, dependencies, generated files fresh, unit tests

fmt:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --release --workspace --all-targets --locked -- -D warnings

generated: $(LAB)
	$(XTASK) deny
	$(XTASK) crds --check
	$(XTASK) manifests --check
	$(XTASK) metrics --check

unit:
	$(CARGO) test --release --workspace --locked

test: ## all tests, as CI runs them; ONLY=name runs the cluster tests of that name only
	@e2e/ci

fuzz: ## look for input that breaks something; SECONDS=600 for each target, ONLY=target
	crates/fuzz/run $(or $(ONLY),all) $(or $(SECONDS),600)

bench: $(LAB) ## Larder beside the local disk and plain programs; results in target/bench; QUICK=1 in under five minutes, ONLY=rows
	$(CARGO) build --release -p larder-cli --locked
# By itself: together they would put the test servers of larder-origin into what is measured.
	$(CARGO) build --release -p larder-bench --locked
	target/release/larder-bench

faults: $(LAB) ## break daemons, pods, disks and nodes under 90 readers; results in target/faults; QUICK=1 fewer, ONLY=cases
	target/release/larder-e2e faults

demo: ## the main job on a throwaway cluster; KEEP=1 leaves it up
	@e2e/demo

demo-down: $(LAB) ## remove the cluster that KEEP=1 left
	$(LAB) down

cluster: $(LAB) images ## bring an empty cluster up and leave it up; NODES=
	KEEP=1 $(LAB) up

shell: $(LAB) ## a shell in the cluster whose kubectl, helm and larder just work
	$(LAB) shell

images: $(LAB) ## the image as an OCI archive, target/images/larder.tar
	$(LAB) tools
	$(CARGO) build --release -p larder-cli --locked
	$(XTASK) images --runtime $(CACHE)/runtime

crds: ## write crds/ from crates/api
	$(XTASK) crds

manifests: ## render manifests/ from charts/larder
	$(XTASK) manifests

metrics: ## write the lists of docs/metrics.md from what the daemons register
	$(XTASK) metrics

tools: $(LAB) ## install the pinned tools of the cluster under ~/.cache/larder
	$(LAB) tools

clean: ## remove build output and test clusters of this clone
	rm -rf target

.PHONY: $(LAB)
$(LAB):
	@$(CARGO) build --release -p larder-e2e --locked
