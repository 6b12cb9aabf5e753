# Targets for people: `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# What show-bench-files puts through the tiers.
FILES ?= /usr/share/doc
# A directory of recorded traces; the replays need it.
TRACES = $(if $(THERMOCLINE_TRACES),$(THERMOCLINE_TRACES),$(error THERMOCLINE_TRACES is not set: name a directory of traces))
# How long `torture` goes on.
SECONDS ?= 600
# Of show-optimizer.
ROUNDS ?= 5
SLICES ?= 12
RUN = $(CARGO) run --quiet --release --

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-24s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test
test: ## everything that must hold: formatting, lints, all tests, examples, documentation (CI=true: a tool that an installation gives is installed, or its lack is a failure)
	@scripts/test

.PHONY: torture
torture: ## simulation, damage, kills, full disks and interleavings, other seeds each time, for SECONDS (600) in all
	scripts/torture "$(SECONDS)"

.PHONY: bench
bench: ## the criterion benches, in full
	$(CARGO) bench --bench tiers
	$(CARGO) bench --bench codecs
	$(CARGO) bench --bench memory

.PHONY: show-benches
show-benches: ## the criterion benches, a first idea in a minute or two
	$(CARGO) bench --bench tiers -- --quick --noplot
	$(CARGO) bench --bench codecs -- --quick --noplot

.PHONY: show-bench
show-bench: ## the command's benchmark, a synthetic load through four tiers on this machine's disk
	$(RUN) bench

.PHONY: show-bench-files
show-bench-files: ## the command's benchmark on real files, every byte compared (FILES=directory)
	$(RUN) bench --files "$(FILES)" --verify

.PHONY: show-replay-oltp
show-replay-oltp: ## the OLTP trace in memory: hit ratio beside LRU and the optimum
	$(RUN) replay "$(TRACES)/OLTP.lis.gz" --memory-items 9344

.PHONY: show-replay-cloudphysics
show-replay-cloudphysics: ## a virtual disk's trace through four tiers, each of which must answer
	scripts/show-replay "$(TRACES)/cloudPhysicsIO.csv.gz" 16MiB 64MiB 192MiB 384MiB

.PHONY: show-replay-web
show-replay-web: ## web requests with their sizes through four tiers, each of which must answer
	scripts/show-replay "$(TRACES)/web-requests.csv.gz" 16MiB 32MiB 64MiB 128MiB

.PHONY: show-examples
show-examples: ## every example program, run
	scripts/examples --release

.PHONY: show-journey
show-journey: ## one item's way through the tiers, under test
	$(CARGO) test --test journey -- --nocapture

.PHONY: show-model
show-model: ## the engine against a plain model, with crashes and damage: 5,000 cases
	THERMOCLINE_CASES=5000 $(CARGO) test --test model -- --nocapture

.PHONY: show-damage
show-damage: ## a whole store with one place damaged, hundreds of thousands of times (THERMOCLINE_TORTURE=1: every bit)
	$(CARGO) test --test damage -- --nocapture

.PHONY: show-packs
show-packs: ## archives read by unzip and Python
	$(CARGO) test --test packs -- --nocapture
	$(CARGO) test --package thermocline-storage cold::tests::tools -- --nocapture

.PHONY: show-stress
show-stress: ## many threads on one store
	$(CARGO) test --release --test stress -- --nocapture

.PHONY: show-kill
show-kill: ## processes that are killed at any moment while they work on a store (THERMOCLINE_ROUNDS=n for more)
	$(CARGO) test --test kill -- --nocapture

.PHONY: show-full-disk
show-full-disk: ## stores on disks that are really full (as root, to mount them)
	$(CARGO) test --test full_disk -- --nocapture

.PHONY: show-optimizer
show-optimizer: ## a load that changes its nature, with the optimizer, without it, and under fixed strategies: minutes (ROUNDS=5 SLICES=12, of about a second, for each phase)
	$(CARGO) bench --bench phases -- --rounds "$(ROUNDS)" --slices "$(SLICES)"

.PHONY: show-memory
show-memory: ## the most memory that a process takes under several loads, against its bound
	$(CARGO) bench --bench memory

.PHONY: show-redis
show-redis: ## hits in memory with a Redis that hangs beside none: p50, p99, p99.9 and their ratio
	$(CARGO) bench --bench redis

# libFuzzer, C++, is neither built nor linked for that: any path will do.
.PHONY: fuzz-check
fuzz-check: ## the fuzz targets compile (running them: fuzz/README.md)
	CUSTOM_LIBFUZZER_PATH=/dev/null $(CARGO) check --locked --manifest-path fuzz/Cargo.toml --target-dir target/fuzz

.PHONY: fuzz
fuzz: ## the fuzz targets, FUZZ_SECONDS (60) each, from their seeds (needs nightly and cargo-fuzz)
	scripts/fuzz

.PHONY: deny
deny: ## licences, duplicate versions, sources and advisories of the dependencies (cargo-deny)
	scripts/deny

.PHONY: asan
asan: ## tests of all that lends memory, under AddressSanitizer
	scripts/sanitize asan

.PHONY: tsan
tsan: ## tests with many threads, under ThreadSanitizer (nightly)
	scripts/sanitize tsan

.PHONY: miri
miri: ## what Miri can run of the tests (nightly with miri and rust-src)
	scripts/sanitize miri

.PHONY: interleavings
interleavings: ## threads of the engine in many orders, for SECONDS (600) each; a failure prints what runs it again
	THERMOCLINE_SECONDS="$(SECONDS)" scripts/interleavings

.PHONY: mutants
mutants: ## break the engine in the ways that mutants/ lists, and see that a test fails for each
	scripts/mutants
