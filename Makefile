# make        what there is
# make test   every test; installs redis-server where it is missing
# make lint   formatting, clippy, documentation, dependency policy

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Debian's package for a program, and how to become root for it.
APT := $(if $(filter 0,$(shell id -u)),,sudo )apt-get
SCRIPTS = .ci/run fuzz/run.sh tests/redis_versions.sh $(shell find benches deploy -name '*.sh' 2>/dev/null)

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

.PHONY: build
build: ## The release binary
	cargo build --release --locked

.PHONY: demo
demo: ## The sidecar in front of a small slow service
	cargo run --release --locked -- demo

# Sees to it that program $(1), of Debian's package $(2), is there.
define install
	@command -v $(1) >/dev/null && exit 0; \
	echo "$(1) is missing; installing it"; \
	if ! command -v apt-get >/dev/null; then \
		echo "no apt-get here: install $(1) so that it is on the PATH, then try again" >&2; exit 1; \
	fi; \
	if [ "$$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then \
		echo "neither root nor sudo: ask for Debian's package $(2), then try again" >&2; exit 1; \
	fi; \
	$(APT) install -y --no-install-recommends $(2) >/dev/null 2>&1 \
		|| { $(APT) update -qq && DEBIAN_FRONTEND=noninteractive $(APT) install -y -qq --no-install-recommends $(2); } \
		|| { echo "$(1) could not be installed: see above" >&2; exit 1; }
endef

.PHONY: redis
redis:
	$(call install,redis-server,redis-server)

.PHONY: test
test: redis ## Every test
	cargo test --locked

.PHONY: test-release
test-release: redis ## Every test on the optimised binary, at full size, one at a time for the sake of its timings
	WEIR_ROUNDS=1000 WEIR_RPS=2000 WEIR_SECONDS=20 WEIR_RESTARTS=20 WEIR_RELOADS=100 WEIR_PATHS=100000 cargo test --locked --release -- --test-threads=1 --nocapture

.PHONY: fleet
fleet: redis ## Eight Weirs under faults and an outside checker: a million reads, more than 20,000 invalidations (WEIR_SEED=1)
	WEIR_PODS=8 WEIR_READS=1000000 WEIR_ORDERS=21000 cargo test --locked --release --test it -- fleet:: --nocapture

.PHONY: storm
storm: redis ## An hour's random walk through the faults of Redis alone, as a cluster and under sentinels, at 2,000 requests a second (WEIR_MINUTES=60, WEIR_SEED=1)
	WEIR_MINUTES=$${WEIR_MINUTES:-60} cargo test --locked --release --test it -- storm::a_walk --nocapture --test-threads=1

# Programs of Redis or Valkey: `make redis-versions SERVERS="redis-server /opt/redis-6.2/redis-server /opt/valkey/valkey-server"`.
SERVERS ?= redis-server

.PHONY: redis-versions
redis-versions: ## What depends on Redis, against each of SERVERS, alone, as a cluster and under sentinels (SERVERS="redis-server PATH...")
	tests/redis_versions.sh $(SERVERS)

.PHONY: model
model: ## A million histories of a fleet under a seeded scheduler (WEIR_MODEL_SEEDS=1000000; WEIR_MODEL_SEED=7 prints one)
	WEIR_MODEL_SEEDS=$${WEIR_MODEL_SEEDS:-1000000} \
		cargo test --locked --release --lib -- invalidation::model::tests::ten_thousand --nocapture

.PHONY: limits-agree
limits-agree: redis ## The limits' scripts and their twin in memory: a million random steps an algorithm (WEIR_STEPS=1000000, WEIR_SEED=7)
	WEIR_STEPS=$${WEIR_STEPS:-1000000} cargo test --locked --release --lib -- limit::shared::agree --nocapture

.PHONY: limits
limits: redis ## What eight Weirs admit under 20,000 requests a second, kills and standstills, and an outside checker of every window (WEIR_SEED=1)
	WEIR_PODS=8 WEIR_RPS=20000 WEIR_SECONDS=60 WEIR_AWAY=60 WEIR_IDENTITIES=10000000 \
		cargo test --locked --release --test it -- limits_fleet:: --nocapture --test-threads=1

.PHONY: peers
peers: redis ## What Weir and models of other limiters admit of the same histories (WEIR_SEED=1)
	cargo test --locked --test it -- limit_peers:: --nocapture

.PHONY: flood
flood: redis ## Invalidations in very large numbers: a tag of a million entries, then 5,000 a second for a minute by eight Weirs
	WEIR_ENTRIES=1000000 WEIR_PODS=8 WEIR_RATE=5000 WEIR_SECONDS=60 \
		cargo test --locked --release --test it -- flood:: --nocapture --test-threads=1

.PHONY: mutants
mutants: redis ## Weirs with one fault made on purpose each, which the checker of a fleet must find
	$(call install,node,nodejs)
	node tests/mutants/run.mjs $(ARGS)

# The binary that the checkers below look at; one of your own is not built.
WEIR ?= target/release/weir
BUILD_WEIR = $(if $(filter target/release/weir,$(WEIR)),cargo build --release --locked --bin weir)
# More of it: `make differential ARGS='--cases 10000 --seed 7'`.
ARGS =

# The public caching test suite, pinned.
SUITE = http-cache-tests@0.4.5
SUITE_AT = target/conformance/$(SUITE)

.PHONY: conformance
conformance: redis ## The public caching test suite: from memory, from Redis, through a fleet of two
	$(call install,node,nodejs)
	$(call install,npm,npm)
	@test -d $(SUITE_AT)/node_modules \
		|| npm install --silent --no-audit --no-fund --no-package-lock --ignore-scripts --prefix $(SUITE_AT) $(SUITE)
	$(BUILD_WEIR)
	node tests/conformance/run.mjs $(WEIR) $(SUITE_AT)/node_modules/http-cache-tests

.PHONY: differential
differential: ## Random histories beside Apache Traffic Server and Squid, if they are installed
	$(call install,node,nodejs)
	$(BUILD_WEIR)
	node tests/differential/run.mjs $(WEIR) $(ARGS)

.PHONY: exchanges
exchanges: redis ## Random exchanges through a fleet, and an observer that knows what may not be
	$(call install,node,nodejs)
	$(BUILD_WEIR)
	node tests/exchanges/run.mjs $(WEIR) $(ARGS)
	node tests/exchanges/run.mjs $(WEIR) --mode memory $(ARGS)

.PHONY: attacks
attacks: ## What hostile clients can cost: slow ones, floods of HTTP/2, ten thousand idle ones
	$(call install,node,nodejs)
	$(call install,slowhttptest,slowhttptest)
	$(call install,h2load,nghttp2-client)
	$(BUILD_WEIR)
	node tests/attacks/run.mjs $(WEIR) $(ARGS)

.PHONY: soak
soak: redis ## An hour of mixed traffic with faults, and whether memory and descriptors stay level
	$(call install,node,nodejs)
	$(BUILD_WEIR)
	node tests/soak/run.mjs $(WEIR) $(ARGS)

# h11 in a place of its own, pinned.
H11 = h11==0.16.0
H11_AT = target/parsers/$(H11)

.PHONY: parsers
# Where Debian has nginx is on the path of root only.
parsers: export PATH := $(PATH):/usr/sbin
parsers: ## Mutated requests: what Weir sends must be one thing to node, h11 and nginx
	$(call install,node,nodejs)
	$(call install,python3,python3)
	$(call install,nginx,nginx)
	@test -x $(H11_AT)/bin/python || { python3 -m venv $(H11_AT) && $(H11_AT)/bin/pip install --quiet $(H11); } \
		|| { rm -rf $(H11_AT); echo "h11 could not be installed: see above (Debian: python3-venv)" >&2; exit 1; }
	$(BUILD_WEIR)
	node tests/parsers/run.mjs $(WEIR) --python $(H11_AT)/bin/python $(ARGS)

.PHONY: lint
lint: ## Formatting, clippy, documentation, dependency policy, scripts
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	@# Without the library that runs them.
	cargo clippy --locked --manifest-path fuzz/Cargo.toml --target-dir target --no-default-features --bins -- -D warnings
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

.PHONY: compare-limits
compare-limits: redis ## What a limit costs a hit: none, in memory, lent, asked of Redis (ARGS='--weir old=PATH --weir new=PATH')
	cargo build --release --locked --bin weir --example bare
	python3 benches/compare/limits.py $(ARGS)

.PHONY: compare-redis
compare-redis: redis ## What Redis costs: hits beside those from memory, commands and bytes by kind, its own time (ARGS='--weir old=PATH --weir new=PATH')
	cargo build --release --locked --bin weir --example bare
	python3 benches/compare/redis.py $(ARGS)

.PHONY: fuzz
fuzz: ## Every parser of foreign bytes, FUZZ_SECONDS each (60)
	fuzz/run.sh

.PHONY: ci
ci: ## What decides whether a change may be merged
	.ci/run
