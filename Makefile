# Targets for CONTRIBUTING.md and README.md; each works in a fresh clone on Debian 12 with Rust.

CARGO ?= cargo
CARGO_DENY_VERSION := 0.20.2
CARGO_DEB_VERSION := 3.8.0

.PHONY: help run check test test-under-load soak lab lab-kernel fuzz lint bench deny-tool package deb test-deb test-unit deb-tool

help:
	@echo "make run    run an end-to-end attestation demo (under 30 s after the build)"
	@echo "make check  check format, lints and unit tests: under a minute once built"
	@echo "make test   run every test"
	@echo "make test-under-load  run every test ten times under CPU load"
	@echo "make soak   pass ten million records through the service; memory and cost must stay constant"
	@echo "make lab    run every scenario on real kernels in QEMU"
	@echo "make lab-kernel  build Linux 7.2 with CONFIG_IMA_STAGING for the lab; KERNEL= selects another kernel"
	@echo "make fuzz   fuzz every parser for a bounded time"
	@echo "make lint   check format, clippy, licences and sources of dependencies, documentation"
	@echo "make bench  run the benchmarks"
	@echo "make package  package the published libraries for crates.io, in target/libraries/package"
	@echo "make deb    build a Debian package in target/debian; make test-deb installs, runs and purges it"
	@echo "make test-unit  test the packaged service under systemd, in a container"

run:
	@scripts/install-missing swtpm=swtpm fusermount3=fuse3
	$(CARGO) build --release --locked -p imastage
	target/release/imastage demo

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test --workspace --lib --bins --locked

test:
	@scripts/install-missing swtpm=swtpm fusermount3=fuse3 evmctl=ima-evm-utils tpm2_checkquote=tpm2-tools \
		qemu-system-x86_64=qemu-system-x86 busybox=busybox-static xz=xz-utils
	@scripts/install-keylime || echo "keylime cannot be installed; tests against it are skipped" >&2
	$(CARGO) test --workspace --locked
	$(CARGO) test --manifest-path fuzz/Cargo.toml --target-dir target/fuzz-corpus --locked
	RUSTFLAGS="--cfg loom" $(CARGO) test -p ima-list --test loom --release --target-dir target/loom --locked
	$(CARGO) build --manifest-path tests/no-std/Cargo.toml --target-dir target/no-std --locked

# Ten runs with four busy processes; see scripts/test-under-load --help for options.
test-under-load:
	@scripts/install-missing swtpm=swtpm fusermount3=fuse3 evmctl=ima-evm-utils tpm2_checkquote=tpm2-tools \
		qemu-system-x86_64=qemu-system-x86 busybox=busybox-static xz=xz-utils
	@CARGO="$(CARGO)" scripts/test-under-load

# IMASTAGE_SOAK_RECORDS sets the number of records.
soak:
	$(CARGO) test --release -p imastage-service --test soak --locked -- --ignored --nocapture

# Kernels are downloaded once, into target/lab. KERNEL=6.12 selects another kernel.
lab:
	@scripts/install-missing swtpm=swtpm evmctl=ima-evm-utils qemu-system-x86_64=qemu-system-x86 \
		busybox=busybox-static xz=xz-utils
	$(CARGO) run --locked -p imastage-lab -- run all $(if $(KERNEL),--kernel $(KERNEL))

# Builds a kernel from Debian's source, once; `imastage-lab list` shows the others.
lab-kernel: KERNEL ?= 7.2-staging
lab-kernel:
	@scripts/install-missing swtpm=swtpm qemu-system-x86_64=qemu-system-x86 busybox=busybox-static \
		flex=flex bison=bison bc=bc xz=xz-utils
	@test -e /usr/include/libelf.h || scripts/install-missing no-such-command=libelf-dev
	$(CARGO) run --locked -p imastage-lab -- build-kernel $(KERNEL)

# 5 seconds per target; `scripts/fuzz 600 binary` fuzzes one target longer.
fuzz:
	@scripts/fuzz 5

lint: deny-tool
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) deny --locked check --hide-inclusion-graph bans licenses sources
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

deny-tool:
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install cargo-deny --locked --version $(CARGO_DENY_VERSION)

bench:
	@scripts/install-missing swtpm=swtpm fusermount3=fuse3 evmctl=ima-evm-utils
	@scripts/install-keylime || echo "keylime cannot be installed; it is not compared" >&2
	$(CARGO) bench --workspace --locked

package:
	@CARGO="$(CARGO)" scripts/package-libraries

deb: deb-tool
	@scripts/build-deb release

test-deb: deb-tool
	@scripts/install-missing swtpm=swtpm systemd-analyze=systemd
	@scripts/test-deb

# Under systemd in a container: fails in environments that cannot nest containers.
test-unit: deb-tool
	@scripts/install-missing swtpm=swtpm systemd-nspawn=systemd-container
	@scripts/test-unit

deb-tool:
	@$(CARGO) deb --version >/dev/null 2>&1 || $(CARGO) install cargo-deb --locked --version $(CARGO_DEB_VERSION)
