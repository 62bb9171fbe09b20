# SoulBox: make setup, make demo, make test. Everything runs as root, because sandboxes are made of namespaces.
# Linux with apt, Rust 1.95, Node >= 20.18, Python >= 3.10; the rest is installed by `setup`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup packages sdks clients criu guests release template demo check lint unit test server-under-test e2e security compat bench soak fuzz clean

export SOULBOX_DATA_DIR ?= ./.data
# The data dir of tests; its base template is built once and found again by its recipe's digest.
TEST_DATA := target/test-data
# Tests, lints and the server under test share one profile, so that the workspace is compiled once.
CI := --profile ci
# nextest runs tests in parallel processes and is faster; without it cargo's own runner does. It is not installed
# for you: building it takes longer than it saves.
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)

help:
	@echo 'make setup   install what is missing, build the server and the base template ($(SOULBOX_DATA_DIR))'
	@echo 'make demo    setup, then both quickstarts against a server that is gone afterwards'
	@echo 'make check   formatting, lints, tidy, unit tests'
	@echo 'make test    check, then faults and the official packages against a real server'
	@echo 'make bench   the table of figures (release build)'
	@echo 'make soak    10,000,000 simulated schedules, create and kill for SOAK_SECONDS (60), 1,000 sandboxes, 30 crashes, 500 at once, and look for leftovers; the older packages; guards away'
	@echo 'make fuzz    each fuzz target for FUZZ_SECONDS (60)'
	@echo 'make clean   end all sandboxes of $(SOULBOX_DATA_DIR) and $(TEST_DATA), delete both'

setup: packages sdks release template

packages:
	@scripts/setup.sh packages

sdks: packages
	@scripts/setup.sh sdks

clients: packages
	@scripts/setup.sh clients

criu: packages
	@scripts/setup.sh criu

# The programs that run inside: static, embedded into the server.
guests: packages
	cargo xtask guests

release: guests
	cargo build --release --package soulbox-cli

template: release
	target/release/soulbox template build templates/base --data-dir $(SOULBOX_DATA_DIR)

demo: setup
	@scripts/demo.sh

lint: guests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(CI) -- -D warnings
	cargo xtask tidy
	@if command -v cargo-deny > /dev/null; then cargo deny --offline check bans licenses sources; \
	else echo 'note: cargo-deny is not installed, licences and sources are not checked here'; fi

unit: guests criu
ifneq ($(NEXTEST),)
	cargo nextest run --workspace --cargo-profile ci --no-fail-fast
else
	cargo test --workspace $(CI)
endif

check: lint unit

test: check e2e security compat

server-under-test: guests sdks
	cargo build $(CI) --package soulbox-cli
	target/ci/soulbox template build templates/base --data-dir $(TEST_DATA)

# The binary as its operator has it: mistakes, faults, restarts.
e2e: server-under-test
	SOULBOX_BINARY=target/ci/soulbox SOULBOX_DATA_DIR=$(TEST_DATA) .cache/venv-latest/bin/pytest -q tests/e2e

# The server as an attacker inside a sandbox has it.
security: server-under-test
	SOULBOX_BINARY=target/ci/soulbox SOULBOX_DATA_DIR=$(TEST_DATA) .cache/venv-latest/bin/pytest -q tests/security

# The server as its users have it: driven by the official packages and nothing else.
compat: server-under-test clients
	SOULBOX_BINARY=target/ci/soulbox SOULBOX_DATA_DIR=$(TEST_DATA) tests/compat/run.sh

bench: setup
	@bench/run.sh

soak: setup
	SOULBOX_SIM_SCHEDULES=10000000 cargo test --release --package soulbox-testkit --test simulation -- --nocapture
	@tests/mutations/lifecycle.sh
	@bench/soak.sh
	SOULBOX_SOAK=10 cargo test $(CI) --package soulbox-envd --test black_box load -- --test-threads 1 --nocapture
	SOULBOX_BINARY=target/release/soulbox SOULBOX_LEAK_CYCLES=1000 SOULBOX_CRASH_ROUNDS=30 SOULBOX_MANY=500 \
		.cache/venv-latest/bin/pytest -q -s tests/e2e/test_leaks.py tests/e2e/test_crashes.py tests/e2e/test_many.py
	SOULBOX_BINARY=target/release/soulbox tests/compat/run.sh --generation old
	SOULBOX_BINARY=target/release/soulbox tests/vm/run.sh
	cargo xtask mutate

# Stored inputs are replayed by the unit tests; this looks for new ones. Needs a C++ compiler.
fuzz:
	@scripts/fuzz.sh

clean:
	@for data in $(SOULBOX_DATA_DIR) $(TEST_DATA); do \
		[ -d "$$data" ] || continue; \
		for binary in target/release/soulbox target/ci/soulbox; do \
			if [ -x "$$binary" ]; then "$$binary" clean --data-dir "$$data"; break; fi; \
		done; \
		if grep -qs " $$(realpath "$$data")/" /proc/mounts; then echo "error: something is still mounted in $$data" >&2; exit 1; fi; \
		rm -rf "$$data"; \
	done
