# SoulBox: make setup, make demo, make test. Everything runs as root, because sandboxes are made of namespaces.
# Linux with apt, Rust 1.95, Node >= 20.18, Python >= 3.10; the rest is installed by `setup`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup packages sdks clients criu guests release template demo check lint unit test server-under-test e2e security compat integrations bench soak fuzz clean

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
	@echo 'make soak    what takes too long for test, with a table of outcomes at the end; some of it by PARTS (scripts/soak.sh --list)'
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
	@if command -v cargo-deny > /dev/null; then cargo deny --offline check --hide-inclusion-graph bans licenses sources; \
	else echo 'note: cargo-deny is not installed, licences and sources are not checked here'; fi

unit: guests criu
ifneq ($(NEXTEST),)
	cargo nextest run --workspace --cargo-profile ci --no-fail-fast
else
	cargo test --workspace $(CI)
endif

check: lint unit

test: check e2e security compat integrations

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

# Models, agent frameworks and MCP clients, by official packages, with the provider on loopback.
integrations: server-under-test
	@scripts/setup.sh integrations
	cargo build $(CI) --package soulbox-fake-provider
	SOULBOX_BINARY=target/ci/soulbox SOULBOX_DATA_DIR=$(TEST_DATA) tests/integrations/run.sh

bench: setup
	@bench/run.sh

# `make soak PARTS='crashes many'` for some of it; scripts/soak.sh --list has the names.
soak:
	@scripts/soak.sh $(PARTS)

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
