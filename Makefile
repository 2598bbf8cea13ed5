# make        what there is
# make test   every test; installs redis-server where it is missing
# make lint   formatting, clippy, documentation, dependency policy

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Debian's package for a program, and how to become root for it.
APT := $(if $(filter 0,$(shell id -u)),,sudo )apt-get
SCRIPTS = .ci/run fuzz/run.sh $(shell find benches deploy -name '*.sh' 2>/dev/null)

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

.PHONY: build
build: ## The release binary
	cargo build --release --locked

.PHONY: demo
demo: ## The sidecar in front of a small slow service
	cargo run --release --locked -- demo

.PHONY: redis
redis:
	@command -v redis-server >/dev/null && exit 0; \
	echo "redis-server is missing; installing it"; \
	if ! command -v apt-get >/dev/null; then \
		echo "no apt-get here: install Redis 7 so that redis-server is on the PATH, then try again" >&2; exit 1; \
	fi; \
	if [ "$$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then \
		echo "neither root nor sudo: ask for Debian's package redis-server, then try again" >&2; exit 1; \
	fi; \
	$(APT) install -y --no-install-recommends redis-server >/dev/null 2>&1 \
		|| { $(APT) update -qq && DEBIAN_FRONTEND=noninteractive $(APT) install -y -qq --no-install-recommends redis-server; } \
		|| { echo "redis-server could not be installed: see above" >&2; exit 1; }

.PHONY: test
test: redis ## Every test
	cargo test --locked

.PHONY: test-release
test-release: redis ## Every test on the optimised binary, at full size, one at a time for the sake of its timings
	WEIR_ROUNDS=1000 WEIR_RPS=2000 WEIR_SECONDS=20 cargo test --locked --release -- --test-threads=1 --nocapture

.PHONY: lint
lint: ## Formatting, clippy, documentation, dependency policy, scripts
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	@if cargo deny --version >/dev/null 2>&1; then \
		cargo deny --locked --offline check bans licenses sources; \
	else echo "cargo-deny is not installed: dependency policy (deny.toml) not checked"; fi
	@if command -v shellcheck >/dev/null; then shellcheck $(SCRIPTS); \
	else echo "shellcheck is not installed: scripts not checked"; fi

.PHONY: bench
bench: ## Micro-benchmarks of a hit's own work
	cargo bench --locked --bench hot

.PHONY: compare
compare: ## Side by side with nginx, HAProxy and Varnish; writes docs/benchmarks.md
	@command -v python3 >/dev/null || { echo "python3 is missing: install it (Debian: python3), then try again" >&2; exit 1; }
	cargo build --release --locked --bin weir --example bare
	python3 benches/compare/run.py --write
	python3 benches/compare/footprint.py

.PHONY: fuzz
fuzz: ## Every parser of foreign bytes, FUZZ_SECONDS each (60)
	fuzz/run.sh

.PHONY: ci
ci: ## What decides whether a change may be merged
	.ci/run
