# SPDX-License-Identifier: Apache-2.0
# One door. As root: `make demo` and `make test` set up everything they need.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV := .venv
BIN := $(VENV)/bin
# The venv is made by Debian's Python, for that is where python3-bpfcc lives.
# Never pip install "bcc": on PyPI that is an unrelated crystal-lattice library.
PYTHON := /usr/bin/python3
# linux-libc-dev: the headers of packets and addresses that bpf/ includes; a kernel's own are not needed.
PACKAGES := python3 python3-venv python3-bpfcc libbpf1 linux-libc-dev iproute2 ethtool nftables iptables docker.io busybox-static util-linux procps curl postgresql-15 redis-tools
# A package of PostgreSQL would make and start a server of its own; redis-tools has Redis without a service.
NO_CLUSTER := /etc/postgresql-common/createcluster.d/penumbra.conf
# What `make bench` compares with; nothing else needs it.
BENCH_PACKAGES := haproxy
# What test-kernel needs besides.
KERNEL_PACKAGES := qemu-system-x86 kmod

# Scripts in a venv name its path: a checkout that was moved or copied gets a new one.
READY := $(VENV)/ready-$(shell pwd | cksum | cut -d' ' -f1)

export TRACE TARGET

.PHONY: help setup demo demo-stateful test test-kernel fuzz score lint bench lab format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: build/packages $(READY) ## install what is missing (Debian packages, a Python venv)

# Installs those of the Debian packages $(1) that are missing, and makes the target's file.
define install
	@mkdir -p build
	@missing=$$(for p in $(1); do dpkg-query -W -f='$${db:Status-Abbrev}' $$p 2>/dev/null | grep -q '^ii' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		[ "$$(id -u)" = 0 ] || { echo "setup needs root to install:" $$missing >&2; exit 1; }; \
		echo "setup: installing Debian packages:" $$missing; \
		mkdir -p $(dir $(NO_CLUSTER)); echo "create_main_cluster = false" >$(NO_CLUSTER); \
		trap 'rm -f $(NO_CLUSTER)' EXIT; \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing \
			>$@.log 2>&1 || { tail -20 $@.log >&2; exit 1; }; \
	fi
	@touch $@
endef

build/packages: Makefile
	$(call install,$(PACKAGES))

build/kernel-packages: Makefile
	$(call install,$(KERNEL_PACKAGES))

build/bench-packages: Makefile
	$(call install,$(BENCH_PACKAGES))

$(READY): build/packages pyproject.toml constraints.txt
	@echo "setup: installing Python packages into $(VENV)"
	@[ -e $@ ] || $(PYTHON) -m venv --clear --system-site-packages $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## the same trace without shadows, reactive and with Penumbra (TRACE=file.csv, TARGET=docker)
	@$(BIN)/python -m controlplane.lab.demo

demo-stateful: setup ## a PostgreSQL under reads and writes gets a shadow, is cut off from it, and loses it again
	@$(BIN)/python -m controlplane.lab.demo_stateful

test: setup ## all tests, as root
	@$(BIN)/python -m tests

test-kernel: setup build/kernel-packages ## the packet tests on Debian's stock kernel under qemu, as root
	@$(BIN)/python -m tests.kernel

fuzz: setup ## 200 000 random frames, against the reference, as root
	@$(BIN)/python -m tests.fuzz

score: setup ## sizing against HPA on recorded load; TRACES="DIR ...", LEADS="30 60", SPEED=6
	@$(BIN)/python -m tests.score $(TRACES) --lead $(or $(LEADS),60) --speed $(or $(SPEED),1)

lint: setup ## ruff, mypy, import contracts, yamllint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/yamllint -s playbooks

bench: setup build/bench-packages ## ns per packet and more, beside nftables and HAProxy, into build/bench.json
	@$(BIN)/python -m tests.bench

lab: setup ## start the lab and leave it up (penumbra lab down ends it)
	@$(BIN)/penumbra lab up

format: setup ## ruff's formatter over everything
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## what was built, the venv too
	@rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
