# `make help` lists the targets.

CARGO ?= cargo
SHELL := /bin/sh
LOCKED := --locked
# The build folder.
TARGET = $(or $(CARGO_TARGET_DIR),target)

TARGETS := help run recording polling static install test manual packages packaging-tools deb release release-check book page browser gdb debugger musl drgn formats check check-hosts testbed bench bench-parts bench-linux qemu fuzz random-guests fuzz-check cargo-fuzz campaign differ differ-testbed sanitize model testbed-linux durability cluster batch-files setup clean
.PHONY: $(TARGETS)
.DEFAULT_GOAL := help

# A name that is no target: names the targets with this word in them.
.DEFAULT:
	@similar='$(strip $(foreach target,$(TARGETS),$(if $(findstring $@,$(target)),$(target))))'; \
	echo "make: there is no target $@: \`make help\` lists the targets$${similar:+; with this word there are: $$similar}" >&2; exit 2

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

# Where /dev/kvm is missing or unusable, guests run on the software processor, and the program says so in one line.
run: setup ## Run the SIMVIRTIO guest, and list its exits
	@$(CARGO) build $(LOCKED) --release
	@$(TARGET)/release/vmm simvirtio

recording: setup ## Record docs/img/vmm.svg, the picture of the README
	@$(CARGO) build $(LOCKED) --release
	@docs/img/record.py $(TARGET)/release/vmm >$(TARGET)/vmm.svg && mv $(TARGET)/vmm.svg docs/img/vmm.svg

polling: setup ## Run the SIMVIRTIO guest with polling instead of exits
	@$(CARGO) run $(LOCKED) --release -- simvirtio --transport polling

TRIPLE := x86_64-unknown-linux-gnu

# Succeeds if the static C library is installed. gcc prints only the name of a file that it does not find.
HAS_STATIC_LIBC = case $$(gcc -print-file-name=libc.a) in */*) ;; *) false;; esac

# `vmm --version` says from which commit an installed program is built. Only here, because each new value builds the program again.
COMMIT = $(shell git describe --always --dirty 2>/dev/null)

# Static linking is not the default: the tests simulate host errors with a preloaded library, which works only in a
# dynamic program, and a static C library is not installed everywhere. Without --target, cargo would apply the flag to
# procedural macros too, which must be dynamic.
static: setup ## Build the statically linked target/release/vmm-static
	@$(HAS_STATIC_LIBC) || { \
		echo "make: the static C library (libc.a) is missing: install libc6-dev (Debian) or glibc-static (Fedora)" >&2; exit 1; }
	@RUSTFLAGS="$$RUSTFLAGS -Ctarget-feature=+crt-static" $(if $(COMMIT),VMM_COMMIT='$(COMMIT)') \
		$(CARGO) build $(LOCKED) --release --package exitlens --target $(TRIPLE)
	@mkdir -p $(TARGET)/release && cp $(TARGET)/$(TRIPLE)/release/vmm $(TARGET)/release/vmm-static

PREFIX = /usr/local
BIN = $(DESTDIR)$(PREFIX)/bin

# The static program starts faster and runs on every distribution, so it is the one to package.
install: setup ## Install the program (PREFIX=/usr/local, DESTDIR=)
	@if $(HAS_STATIC_LIBC); then \
		$(MAKE) --no-print-directory static && program=vmm-static kind="statically linked"; \
	else \
		$(if $(COMMIT),VMM_COMMIT='$(COMMIT)') $(CARGO) build $(LOCKED) --release && program=vmm kind="dynamically linked, because libc.a is missing"; \
	fi && install -d "$(BIN)" && install -m 755 $(TARGET)/release/$$program "$(BIN)/vmm" && \
		echo "make: installed $(BIN)/vmm ($$kind)" >&2

# Every debug build covers the whole workspace. For a single package, cargo would choose other features of the libraries
# and compile them once more.
WORKSPACE := $(LOCKED) --workspace

# The feature `polling` changes only the default transport, which only the test `polling` depends on. On a host without
# KVM, guests run on the software processor, and tests that need KVM run in the testbed, an emulated machine.
# The grade of this program as a student's VMM, for both courses. The last build of the tests is that with the feature
# `polling`, so the program of the task polling is that one.
AS_A_VMM = $(TARGET)/release/vmm grade so2 --finished halted --count-pattern '^vmm: ([0-9]+) exits?:' \
	--run "real='$(TARGET)/release/vmm' real16-hello" --run "long='$(TARGET)/release/vmm' long64-hello" \
	--run "simvirtio='$(TARGET)/release/vmm' simvirtio" --run "polling='$(TARGET)/debug/vmm' simvirtio"
KEV_TRAPS = kev-port kev-mmio kev-ports kev-strings kev-cpuid kev-msr kev-msr-fault
AS_A_KEV_VMM = $(TARGET)/release/vmm grade kev $(foreach trap,$(KEV_TRAPS),--run "$(trap)='$(TARGET)/release/vmm' $(trap)")

test: setup ## Run all tests and print the grades
	@$(CARGO) build $(LOCKED) --release
	$(CARGO) test $(WORKSPACE)
	$(CARGO) test $(WORKSPACE) --features exitlens/polling --test polling
	@echo && echo "Grade for SO2's assignment:"
	@$(TARGET)/release/vmm grade --reference
	@echo && echo "Grade for KeV's project 2:"
	@$(TARGET)/release/vmm grade kev --reference
	@if $(TARGET)/release/vmm doctor >/dev/null 2>&1; then \
		echo && echo "Grade for this program as a student's VMM (SO2):" && $(AS_A_VMM) && \
		echo && echo "Grade for this program as a student's VMM (KeV):" && $(AS_A_KEV_VMM); \
	else tests/testbed/instead; fi

manual: setup ## Write manual pages and completions to packaging/out
	@$(CARGO) build $(WORKSPACE) --quiet --bin packaging
	@$(TARGET)/debug/packaging packaging/out

# The release is a dry run with the program of `make run`. It does not compile the registry's packages, as `make release-check` does.
packages: setup packaging-tools ## Test manual pages, completions and the release script
	@tests/need man man-db "the tests of manual pages need"
	@tests/need mandoc mandoc "the tests of manual pages need"
	@tests/need zsh zsh "the tests of completions need"
	@tests/need fish fish "the tests of completions need"
	REQUIRE_PACKAGING=1 $(CARGO) test $(WORKSPACE) --test shells
	@$(CARGO) build $(LOCKED) --release
	@$(TOOLS) packaging/release --dry-run --program $(TARGET)/release/vmm
	@packaging/check-deb $(TARGET)/release-files/*.deb

# cargo finds a tool such as cargo-deb in PATH.
TOOLS = PATH="$(abspath $(TARGET))/tools/bin:$(abspath $(TARGET))/cyclonedx/bin:$$PATH"

# They run for a second, so they are not optimised. They share many libraries.
packaging-tools:
	@for tool in cargo-deb cargo-cyclonedx; do $(TOOLS) command -v $$tool >/dev/null || \
		{ echo "make: installing $$tool into $(TARGET)/tools, which takes a minute" >&2; \
		$(CARGO) install --quiet --locked --debug --root $(TARGET)/tools --target-dir $(TARGET)/tools/build $$tool || exit 1; }; done

deb: setup packaging-tools ## Make the .deb; install, use and remove it
	@$(TOOLS) packaging/release --dry-run --only deb
	@packaging/check-deb $(TARGET)/release-files/*.deb

release: setup packaging-tools ## Make the files of a release from its tag
	@$(TOOLS) packaging/release

# The second build starts from nothing, and must give the same files.
release-check: setup packaging-tools $(TARGET)/cyclonedx/done ## Try a release, with all that takes long
	@tests/need lintian lintian "the test of the .deb needs"
	@rm -rf $(TARGET)/release-first $(TARGET)/release-build
	@$(TOOLS) packaging/release --dry-run --verify
	@mv $(TARGET)/release-files $(TARGET)/release-first && rm -rf $(TARGET)/release-build
	@$(TOOLS) packaging/release --dry-run
	@cmp $(TARGET)/release-first/SHA256SUMS $(TARGET)/release-files/SHA256SUMS && echo "make: two builds gave the same files" >&2
	@packaging/check-deb $(TARGET)/release-files/*.deb

$(TARGET)/cyclonedx/done:
	@tests/need python3 "python3 python3-venv" "the check of the SBOM needs"
	@python3 -m venv $(TARGET)/cyclonedx && \
		$(TARGET)/cyclonedx/bin/pip install --quiet 'cyclonedx-python-lib[json-validation]' && touch $@

MDBOOK = $(or $(shell command -v mdbook),$(TARGET)/mdbook/bin/mdbook)

# mdBook writes a line for each include that is missing, and succeeds all the same. The links to listings lead out of its folder.
book: $(MDBOOK) ## Build the lab book for a browser (target/book/index.html)
	@rm -rf $(TARGET)/book
	@NO_COLOR=1 $(MDBOOK) build docs/book --dest-dir $(abspath $(TARGET)/book) >$(TARGET)/book.log 2>&1 && \
		! grep -qE 'WARN|ERROR' $(TARGET)/book.log || { cat $(TARGET)/book.log >&2; echo "make: the book has mistakes" >&2; exit 1; }
	@cp -r docs/book/code $(TARGET)/book/ && sed -i 's|href="\.\./code/|href="code/|g' $(TARGET)/book/*.html
	@echo "make: wrote the book: open $(TARGET)/book/index.html" >&2

# Without the search and the server for writers, there is less to compile.
$(TARGET)/mdbook/bin/mdbook:
	@echo "make: installing mdBook into $(TARGET)/mdbook, which takes a minute or two" >&2
	@$(CARGO) install mdbook --version 0.5.4 $(LOCKED) --no-default-features --debug --root $(TARGET)/mdbook \
		--target-dir $(TARGET)/tools/build --quiet || \
		{ echo "make: cannot install mdBook: install it by hand, then try again" >&2; exit 1; }

# Installs chromium if it is missing (Debian).
page: setup browser ## Test the HTML page of `vmm report` in chromium
	REQUIRE_BROWSER=1 $(CARGO) test $(WORKSPACE) --test page

browser:
	@tests/need "chromium chromium-browser google-chrome" "chromium fonts-dejavu-core" "the tests of the HTML page need"

gdb: setup debugger drgn ## Test the debugger's interface with gdb, and cores with gdb and drgn
	REQUIRE_GDB=1 REQUIRE_DRGN=1 $(CARGO) test $(WORKSPACE) --test gdb --test gdb_machine --test gdb_protocol --test core

debugger:
	@tests/need gdb gdb "the tests of --gdb and --core need"

# Installs musl-tools if it is missing (Debian).
musl:
	@tests/need musl-gcc musl-tools "the tests of vmm observe with musl need"

# drgn is a Python package. It gets a folder of its own.
drgn: $(TARGET)/drgn/done

$(TARGET)/drgn/done:
	@tests/need python3 "python3 python3-venv" "the tests of cores with drgn need"
	@echo "make: installing drgn into $(TARGET)/drgn" >&2
	@python3 -m venv $(TARGET)/drgn && $(TARGET)/drgn/bin/pip install --quiet drgn && touch $@

# The schema of JUnit files of Jenkins' xunit plugin (MIT license).
JUNIT_XSD = https://raw.githubusercontent.com/jenkinsci/xunit-plugin/8c515de2804b3fd591a3b0f1ff8908a1b1a41887/src/main/resources/org/jenkinsci/plugins/xunit/types/model/xsd/junit-10.xsd
JUNIT_SUM = a1a816f58d1bf95ebabf371994df0b9246dee66ea9572fbec4f9296f1b2c0ff6

formats: setup $(TARGET)/junit/junit-10.xsd ## Test the formats of grades with their readers
	@tests/need xmllint libxml2-utils "the tests of JUnit files need"
	@tests/need prove perl "the tests of TAP need"
	@tests/need python3 python3 "the tests of CSV and JSON need"
	REQUIRE_FORMATS=1 $(CARGO) test $(WORKSPACE) --test grade_formats

$(TARGET)/junit/junit-10.xsd:
	@tests/need curl "curl ca-certificates" "the schema of JUnit files is fetched with"
	@mkdir -p $(@D)
	@curl -sSfL --max-time 60 -o $@.part $(JUNIT_XSD) || \
		{ echo "make: cannot fetch $(JUNIT_XSD): put it to $@ by hand, then try again" >&2; exit 1; }
	@echo "$(JUNIT_SUM)  $@.part" | sha256sum --check --quiet && mv $@.part $@

# The test `layers` also finds unused dependencies.
check: export GUEST_DENY_WARNINGS := 1
check: setup ## Check formatting, lints, layers and documentation
	$(CARGO) fmt --check
	rustfmt --check --edition 2024 --config-path rustfmt.toml guest/payloads/long64/*.rs
	$(CARGO) clippy $(WORKSPACE) --all-targets -- -D warnings
	$(CARGO) clippy $(WORKSPACE) --features exitlens/polling --lib --bins --test polling -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(WORKSPACE) --no-deps
	RUSTFLAGS="-D warnings" RUSTC="$(CURDIR)/tests/other-host/rustc" $(CARGO) check $(LOCKED) $(ALL_HOSTS) --target-dir $(TARGET)/other-host
	$(CARGO) test $(WORKSPACE) --quiet --test layers --test manifests

# Nothing is linked or run. The other packages need KVM. `make check` does the same with a compiler that only claims to be for
# ARM Linux, so it compiles the code for hosts without KVM, but none that is only for ARM.
ALL_HOSTS = -p exitlens $(foreach name,commands exercise report vmm softcpu guest simvirtio,-p exitlens-$(name)) --lib --bins
HOSTS_CHECK = $(CARGO) clippy $(LOCKED) $(ALL_HOSTS)
HOSTS = aarch64-unknown-linux-gnu aarch64-apple-darwin x86_64-apple-darwin

check-hosts: setup ## Check the build for other hosts: ARM Linux and macOS
	@for host in $(HOSTS); do \
		if [ -d "$$(rustc --print target-libdir --target $$host)" ]; then \
			echo "make: checking $$host" >&2; \
			$(HOSTS_CHECK) --target $$host -- -D warnings || exit 1; \
		else \
			echo "make: $$host was not checked: install its standard library (rustup target add $$host)" >&2; \
		fi; \
	done

# Besides Rust, the build needs gcc with binutils, and nasm. Only nasm is installed automatically. On a host other than
# x86-64 Linux, guest/build.rs looks for the gcc. An old cargo would only complain about Cargo.toml.
setup: ## Check the build tools; install nasm if it is missing
	@case $$(uname -sm) in "Linux x86_64") tools="gcc ld objcopy";; esac; \
	for tool in $(CARGO) $$tools; do command -v $$tool >/dev/null || \
		{ echo "make: $$tool is missing: install Rust (https://rustup.rs) and gcc with binutils" >&2; exit 1; }; done
	@wanted=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml); version=$$($${RUSTC:-rustc} --version | cut -d ' ' -f 2); \
	[ -z "$$version" ] || [ "$$(printf '%s\n' "$$wanted" "$$version" | sort -V | head -n 1)" = "$$wanted" ] || \
		{ echo "make: Rust $$version is too old: install $$wanted or later (https://rustup.rs)" >&2; exit 1; }
	@command -v nasm >/dev/null || tests/need nasm nasm "assembles the 16-bit guests"

# Several emulated hosts, because a host that runs for a long time sometimes stops.
testbed: setup ## Run tests and Linux in an emulated machine (Debian)
	@tests/testbed/run test
	@tests/testbed/run gdb
	@$(MAKE) --no-print-directory testbed-linux

testbed-linux: setup ## Run the part of make testbed that boots Linux
	@tests/testbed/run linux

durability: setup ## Kill Linux guests that write to a disk (ROUNDS=50)
	@LINUX_KILLS=$(or $(ROUNDS),50) TESTBED_SECONDS=3600 tests/testbed/run linux synced_files_survive_a_kill

# Starts munged, slurmctld and slurmd on this host, from Debian's packages, and removes all of it at the end. Skips where they cannot
# be had.
cluster: setup ## Grade on a Slurm cluster of one node
	@$(CARGO) build $(LOCKED)
	@tests/cluster $(TARGET)/debug/vmm

# The schemas are part of the two Python packages.
batch-files: $(TARGET)/schemas/done ## Check the YAML files of examples/batch
	@$(TARGET)/schemas/bin/check-jsonschema --builtin-schema vendor.github-workflows examples/batch/github.yml
	@$(TARGET)/schemas/bin/check-jsonschema --builtin-schema vendor.gitlab-ci --data-transform gitlab-ci examples/batch/gitlab.yml
	@$(TARGET)/schemas/bin/kubernetes-validate --strict examples/batch/kubernetes.yaml

$(TARGET)/schemas/done:
	@tests/need python3 "python3 python3-venv" "the check of YAML files needs"
	@echo "make: installing check-jsonschema and kubernetes-validate into $(TARGET)/schemas" >&2
	@python3 -m venv $(TARGET)/schemas && \
		$(TARGET)/schemas/bin/pip install --quiet check-jsonschema kubernetes-validate && touch $@

# The file of the plot. SAVE=1 replaces the plot in docs/img.
PLOT = $(if $(SAVE),docs/img/bench.svg,$(TARGET)/bench/bench.svg)

# What the chosen measurements need. The others need only the program `bench`.
BENCH_PARTS = $(or $(ONLY),exits cold again echo scale soft observe batch size qemu)
BENCH_NEEDS_VMM = $(filter cold scale soft observe batch size qemu,$(BENCH_PARTS))
BENCH_NEEDS_STATIC = $(filter cold,$(BENCH_PARTS))
BENCH_NEEDS_QEMU = $(filter size qemu,$(BENCH_PARTS))

bench: setup $(if $(BENCH_NEEDS_QEMU),qemu) ## Measure costs; 4 minutes (ROUNDS=n, ONLY=name, SAVE=1)
	@$(CARGO) build $(LOCKED) --release -p bench
	@$(if $(BENCH_NEEDS_VMM),$(CARGO) build $(LOCKED) --release)
	@$(if $(BENCH_NEEDS_STATIC),$(MAKE) --no-print-directory static || echo "make: measuring cold starts without the static program" >&2)
	@$(TARGET)/release/bench --json $(TARGET)/bench/results.json --svg $(PLOT) \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(ONLY:%=--only %)
	@echo "make: wrote the plot to $(PLOT) and the numbers to $(TARGET)/bench/results.json" >&2

bench-parts: setup ## Measure the steps of an exit separately
	@$(CARGO) bench $(LOCKED) -p bench --bench parts

# QEMU is only a baseline: without it, `make bench` skips the comparison and reports that.
qemu:
	@if ! command -v qemu-system-x86_64 >/dev/null && command -v apt-get >/dev/null; then \
		echo "make: installing qemu-system-x86, for the comparison" >&2; \
		if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi; \
		install="$$sudo apt-get install -y --no-install-recommends qemu-system-x86"; \
		{ $$install || { $$sudo apt-get update && $$install; }; } >&2 \
			|| echo "make: cannot install QEMU: continuing without it" >&2; \
	fi

# Boots Linux and measures its disks in the testbed. TINY=1 adds a tiny kernel.
bench-linux: setup ## Compare Linux boots with QEMU (ROUNDS=3, TINY=1)
	@[ -z "$(TINY)" ] || tests/testbed/tiny-kernel >/dev/null
	@tests/testbed/run bench $(or $(ROUNDS),3)

FUZZ_SECONDS := 30
FUZZ_TARGETS = $(patsubst fuzz/fuzz_targets/%.rs,%,$(wildcard fuzz/fuzz_targets/*.rs))

cargo-fuzz:
	@cargo fuzz --version >/dev/null 2>&1 || \
		{ echo "make: installing cargo-fuzz" >&2; $(CARGO) install --locked cargo-fuzz; }

# cargo-fuzz uses unstable compiler flags. RUSTC_BOOTSTRAP=1 makes a stable compiler accept them.
fuzz: setup cargo-fuzz ## Fuzz all readers of hostile input (FUZZ_SECONDS=30)
	for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/corpus/$$target && \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --sanitizer none $$target fuzz/corpus/$$target \
			$$(ls -d fuzz/seeds/$$target 2>/dev/null) -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -max_len=4096 -len_control=0 || exit 1; \
	done

# Guests of random bytes: 2,000 in a second. A number is a seed, so each guest can be repeated.
random-guests: setup ## Run random guests on the software processor (GUESTS=n, FIRST=n)
	$(CARGO) run --locked --release --manifest-path fuzz/Cargo.toml --example random_guests -- $(or $(GUESTS),100000) $(or $(FIRST),0)

# The targets must find planted bugs, each within a minute.
fuzz-check: setup cargo-fuzz ## Check the fuzz targets (FUZZ_SEED=n, BUGS="V1 K3")
	@fuzz/check $(BUGS)

# The files of a run with a finding stay in target/campaign.
# Runs on hosts whose system calls fail, random images, and hostile kernels.
campaign: setup ## Run hostile guests; 10 minutes (SEED=n, ONLY=part:n)
	@$(CARGO) build $(LOCKED) --release
	@$(CARGO) build $(LOCKED) --release -p campaign
	@$(TARGET)/release/campaign --program $(TARGET)/release/vmm --findings $(TARGET)/campaign \
		$(SEED:%=--seed %) $(ONLY:%=--only %) $(CAMPAIGN_SECONDS:%=--seconds %)

# A run of 60 seconds: make differ SECONDS=60. One program: make differ SEED=n ONLY=user:n.
differ: setup ## Compare the software processor with KVM (SEED=n, PROGRAMS=n, SECONDS=n, ONLY=user)
	@$(CARGO) build $(LOCKED) --release -p differ
	@$(TARGET)/release/differ $(SEED:%=--seed %) $(ONLY:%=--only %) \
		$(PROGRAMS:%=--programs %) $(SECONDS:%=--seconds %)

# The same on an emulated AMD host, whose kvm_amd executes ring 0 itself.
differ-testbed: setup ## The same on an emulated AMD host (ONLY=long SECONDS=60)
	@tests/testbed/run differ $(SEED:%=--seed %) $(ONLY:%=--only %) $(PROGRAMS:%=--programs %) $(SECONDS:%=--seconds %)

# loom is a dependency of this package only, which is not part of the workspace.
model: setup ## Run every interleaving of the threads of a ring (loom)
	$(CARGO) test $(LOCKED) --manifest-path model/Cargo.toml --target-dir $(TARGET)/model

sanitize: setup model ## Run ThreadSanitizer, Miri and loom
	@CARGO="$(CARGO)" TARGET="$(TARGET)" tests/sanitize/run

clean: ## Remove all build results
	$(CARGO) clean
