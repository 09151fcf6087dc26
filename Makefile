# Everything that there is to do. `make help` lists it.

CARGO ?= cargo
SHELL := /bin/sh
LOCKED := --locked

.PHONY: help run polling static test test_here test_elsewhere page check testbed bench bench-parts bench-linux qemu fuzz testbed-linux setup clean
.DEFAULT_GOAL := help

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# Where guests cannot run, because /dev/kvm is missing or unusable, the same is done in the testbed.
HAS_KVM = $(CARGO) run $(LOCKED) -q --release -- doctor >/dev/null 2>&1
NO_KVM = echo "make: guests cannot run here (vmm doctor says why): this runs in an emulated machine, the testbed" >&2

run: setup ## Run the SIMVIRTIO guest: its message, the verdict, its exits
	@$(CARGO) build $(LOCKED) --release
	@if $(HAS_KVM); then $(CARGO) run $(LOCKED) -q --release -- simvirtio; \
		else $(NO_KVM); tests/testbed/run vmm simvirtio; fi

polling: setup ## Run the same guest without exits, over shared memory
	@$(CARGO) run $(LOCKED) --release -- simvirtio --transport polling

TRIPLE := x86_64-unknown-linux-gnu

# Not the way everything is built: the tests play sick hosts with a library that only a dynamic program loads, and a C
# library to link with is not installed everywhere. With --target macros are still compiled for the compiler.
static: setup ## Build the program as one static file, which starts fastest: target/release/vmm-static
	@case $$(gcc -print-file-name=libc.a) in */*) ;; *) \
		echo "make: the static C library is missing (libc.a): install libc6-dev, glibc-static or the like" >&2; exit 1;; esac
	@RUSTFLAGS="$$RUSTFLAGS -Ctarget-feature=+crt-static" \
		$(CARGO) build $(LOCKED) --release --package vmm --target $(TRIPLE)
	@mkdir -p $(TARGET)/release && cp $(TARGET)/$(TRIPLE)/release/vmm $(TARGET)/release/vmm-static

test: setup ## Run every test, and print the grades
	@$(CARGO) build $(LOCKED) --release
	@if $(HAS_KVM); then $(MAKE) --no-print-directory test_here; \
		else $(NO_KVM); $(MAKE) --no-print-directory test_elsewhere; fi

# What needs no KVM is tested here all the same.
test_elsewhere:
	$(CARGO) test $(LOCKED) --workspace
	tests/testbed/run test

# What may differ in a build whose drivers poll unless they are told otherwise.
POLLING_TESTS := guests hostile machines transports compare grade command_line controllers vcpus measure boot console \
	grade_kev host signals scale

test_here:
	$(CARGO) test $(LOCKED) --workspace
	$(CARGO) test $(LOCKED) -p vmm --features polling $(POLLING_TESTS:%=--test %)
	@echo && echo "The grade, by default over exits:"
	@$(CARGO) run $(LOCKED) -q -p vmm -- grade
	@echo && echo "The grade, by default over polling:"
	@$(CARGO) run $(LOCKED) -q -p vmm --features polling -- grade
	@echo && echo "The grade of KeV's project 2:"
	@$(CARGO) run $(LOCKED) -q -p vmm -- grade kev

page: setup ## Test the page of `vmm report` in a real browser: Debian's chromium, which is installed where it is missing
	@if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then \
		echo "make: installing chromium, the browser of the page's tests" >&2; \
		if ! command -v apt-get >/dev/null; then \
			echo "make: no apt-get here: install chromium with this system's package manager, then try again" >&2; exit 1; fi; \
		if [ "$$(id -u)" = 0 ]; then sudo=; elif command -v sudo >/dev/null; then sudo=sudo; else \
			echo "make: neither root nor sudo: have an administrator install chromium, then try again" >&2; exit 1; fi; \
		install="$$sudo apt-get install -y --no-install-recommends chromium fonts-dejavu-core"; \
		{ $$install || { $$sudo apt-get update && $$install; }; } >&2 \
			|| { echo "make: chromium could not be installed: install it by hand, then try again" >&2; exit 1; }; \
	fi
	REQUIRE_BROWSER=1 $(CARGO) test $(LOCKED) -p vmm --test page

check: setup ## Formatting, lints, documentation, unused dependencies
	$(CARGO) fmt --check
	rustfmt --check --edition 2024 --config-path rustfmt.toml guest/payloads/long64/*.rs
	GUEST_DENY_WARNINGS=1 $(CARGO) clippy $(LOCKED) --workspace --all-targets -- -D warnings
	$(CARGO) clippy $(LOCKED) -p vmm --features polling --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(LOCKED) --workspace --no-deps
	@command -v cargo-machete >/dev/null || \
		{ echo "make: installing cargo-machete, which finds unused dependencies"; $(CARGO) install --locked cargo-machete; }
	$(CARGO) machete

# What the build needs beyond Rust: gcc with binutils, and nasm, which is installed where it is missing.
setup: ## Install what the build needs and is missing
	@for tool in $(CARGO) gcc ld objcopy; do command -v $$tool >/dev/null || \
		{ echo "make: $$tool is missing: install Rust (https://rustup.rs) and gcc with binutils" >&2; exit 1; }; done
	@if ! command -v nasm >/dev/null; then \
		echo "make: installing nasm, the assembler of the 16-bit guests" >&2; \
		if ! command -v apt-get >/dev/null; then \
			echo "make: no apt-get here: install nasm with this system's package manager, then try again" >&2; exit 1; fi; \
		if [ "$$(id -u)" = 0 ]; then sudo=; elif command -v sudo >/dev/null; then sudo=sudo; else \
			echo "make: neither root nor sudo: have an administrator install nasm, then try again" >&2; exit 1; fi; \
		{ $$sudo apt-get install -y nasm || { $$sudo apt-get update && $$sudo apt-get install -y nasm; }; } >&2 \
			|| { echo "make: nasm could not be installed: install it by hand, then try again" >&2; exit 1; }; \
	fi

# A host for each: one that has run for long stops now and then.
testbed: setup ## Run the tests, the grades and Linux on a second KVM host: kvm_amd in an emulated machine (Debian)
	@tests/testbed/run test
	@$(MAKE) --no-print-directory testbed-linux

testbed-linux: setup ## Run the part of make testbed that boots Linux
	@tests/testbed/run linux

# What was built, and where the results go: into the docs when asked to.
TARGET = $(or $(CARGO_TARGET_DIR),target)
PLOT = $(if $(SAVE),docs/img/bench.svg,$(TARGET)/bench/bench.svg)

bench: setup qemu ## What exits, starts and memory cost, next to bare programs and QEMU: 3 minutes (ROUNDS, ONLY=name, SAVE=1: docs/img)
	@$(CARGO) build $(LOCKED) --release
	@$(CARGO) build $(LOCKED) --release -p bench
	@$(MAKE) --no-print-directory static || echo "make: a cold start is measured without the static program" >&2
	@$(TARGET)/release/bench --json $(TARGET)/bench/results.json --svg $(PLOT) \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(ONLY:%=--only %)
	@echo "make: the plot is $(PLOT), the numbers are $(TARGET)/bench/results.json; make bench-parts measures the parts" >&2

bench-parts: setup ## What the parts of an exit's way cost, each by itself: decode, dispatch, devices, rings, the profile
	@$(CARGO) bench $(LOCKED) -p bench --bench parts

# It is only compared with: where it cannot be had, that is left out, and said.
qemu:
	@if ! command -v qemu-system-x86_64 >/dev/null && command -v apt-get >/dev/null; then \
		echo "make: installing qemu-system-x86, to compare with" >&2; \
		if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi; \
		install="$$sudo apt-get install -y --no-install-recommends qemu-system-x86"; \
		{ $$install || { $$sudo apt-get update && $$install; }; } >&2 \
			|| echo "make: QEMU could not be installed: going on without" >&2; \
	fi

bench-linux: setup ## Boot Linux, use its disk, next to QEMU's microvm, ROUNDS (3) times, in the testbed; TINY=1 builds a tiny kernel too
	@[ -z "$(TINY)" ] || tests/testbed/tiny-kernel >/dev/null
	@tests/testbed/run bench $(or $(ROUNDS),3)

FUZZ_SECONDS := 30

# The fuzzer's flags are unstable ones, which a stable compiler takes when asked to.
fuzz: setup ## Fuzz the loaders, the window, the rings, the disk and the saved files, each for FUZZ_SECONDS (30)
	@cargo fuzz --version >/dev/null 2>&1 || \
		{ echo "make: installing cargo-fuzz"; $(CARGO) install --locked cargo-fuzz; }
	for target in elf window ring kernel virtio profile trace; do \
		mkdir -p fuzz/corpus/$$target && \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --sanitizer none $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -max_len=4096 || exit 1; \
	done

clean: ## Remove all that was built
	$(CARGO) clean
