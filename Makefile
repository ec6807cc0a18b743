# mod_pool's front door. `make demo` tries it, `make test` proves it, `make install` puts it into this machine's httpd.

APXS ?= apxs
CARGO = scripts/cargo
TARGET = $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := build
.PHONY: help deps build demo demo-check test test-debian scale suite suite-http2 check bench fuzz install uninstall clean

help:
	@echo "make build      compile build/mod_pool.so"
	@echo "make demo       run a server with two pools on 127.0.0.1:8080 (as root; DEMO_PORT, DEMO_TLS_PORT, DEMO_ADDRESS)"
	@echo "make demo-check start the demo, run the commands it prints, compare, stop"
	@echo "make test       everything: unit, layering, end to end (as root; TEST_WORKERS, TEST_MINUTES)"
	@echo "make suite      httpd's own test suite, in pools and beside them (as root; SUITE=options of tests/suite/run)"
	@echo "make suite-http2  httpd's own tests of HTTP/2, likewise (as root; SUITE=options of tests/suite/http2)"
	@echo "make test-debian  the steps of docs/debian.md in a fresh container (docker; DEBIAN_IMAGE)"
	@echo "make scale      thousands of pools, in both modes (as root)"
	@echo "make check      formatting, lints, documentation, without warnings"
	@echo "make bench      measure beside php-fpm, prefork and mpm_itk (as root)"
	@echo "make fuzz       fuzz the decoders and the settings (FUZZ_SECONDS each)"
	@echo "make install    into this machine's httpd, through apxs; then: a2enmod pool"
	@echo "make deps       install with apt what build, demo and test need"

deps:
	scripts/deps build demo test

build:
	@scripts/deps build
	$(CARGO) build --locked --release --features httpd
	@mkdir -p build
	@cmp -s $(TARGET)/release/libmod_pool.so build/mod_pool.so || \
	  { cp $(TARGET)/release/libmod_pool.so build/mod_pool.so.new && mv build/mod_pool.so.new build/mod_pool.so; }

demo:
	@scripts/deps build demo
	@$(MAKE) --no-print-directory build
	@exec demo/run

demo-check:
	@scripts/deps build demo
	@$(MAKE) --no-print-directory build
	@exec demo/check

test:
	@scripts/deps build demo test
	@exec tests/run

# SUITE="--mpm pool": with mod_pool as the MPM.
suite:
	@scripts/deps build suite
	@$(MAKE) --no-print-directory build
	@tests/suite/fetch
	@exec tests/suite/run $(SUITE)

suite-http2:
	@scripts/deps build suite-http2
	@$(MAKE) --no-print-directory build
	@tests/suite/fetch
	@exec tests/suite/http2 $(SUITE)

scale:
	@scripts/deps build test
	@$(MAKE) --no-print-directory build
	/usr/bin/python3 -m pytest -q -p no:cacheprovider tests/e2e/test_many_pools.py --scale
	/usr/bin/python3 -m pytest -q -p no:cacheprovider tests/e2e/test_many_pools.py --scale --mpm=pool

test-debian: build
	@exec tests/debian/run $(DEBIAN_IMAGE)

check:
	@scripts/deps build check fuzz
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --all-targets --features httpd -- -D warnings
	$(CARGO) check --locked --manifest-path fuzz/Cargo.toml --target-dir fuzz/target
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items --features httpd

bench:
	@scripts/deps build bench
	@$(MAKE) --no-print-directory build
	@bench/run
	@bench/crowds
	@bench/uploads

fuzz:
	@scripts/deps build fuzz
	@exec fuzz/run

install: build
	@APXS=$(APXS) scripts/install

uninstall:
	@APXS=$(APXS) scripts/install remove

clean:
	$(CARGO) clean
	rm -rf build
