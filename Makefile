# mod_pool's front door. `make demo` tries it, `make test` proves it, `make install` puts it into this machine's httpd.

APXS ?= apxs
CARGO = scripts/cargo
TARGET = $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
HTTPD_ETC = $(shell $(APXS) -q SYSCONFDIR)
HTTPD_MODULES = $(shell $(APXS) -q LIBEXECDIR)

.DEFAULT_GOAL := build
.PHONY: help deps build demo demo-check test check bench fuzz install uninstall clean

help:
	@echo "make build      compile build/mod_pool.so"
	@echo "make demo       run a server with two pools on 127.0.0.1:8080 (as root; DEMO_PORT, DEMO_TLS_PORT, DEMO_ADDRESS)"
	@echo "make demo-check start the demo, run the commands it prints, compare, stop"
	@echo "make test       everything: unit, layering, end to end (as root)"
	@echo "make check      formatting, lints, documentation, without warnings"
	@echo "make bench      measure beside php-fpm, prefork and mpm_itk (as root)"
	@echo "make fuzz       fuzz the decoders (FUZZ_SECONDS each)"
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

check:
	@scripts/deps build check
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --all-targets --features httpd -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items --features httpd

bench:
	@scripts/deps build bench
	@$(MAKE) --no-print-directory build
	@exec bench/run

fuzz:
	@scripts/deps build
	@exec fuzz/run

# apxs copies a shared object that libtool did not make just as well; it says so in a warning.
install: build
	$(APXS) -i -n pool build/mod_pool.so
	@if [ -d $(HTTPD_ETC)/mods-available ]; then \
	  set -e; for file in pool.load pool_php.load pool_php.conf; do \
	    install -m 644 conf/$$file $(HTTPD_ETC)/mods-available/$$file; done; \
	  if [ -e $(HTTPD_ETC)/mods-available/pool.conf ]; then \
	    echo "kept your $(HTTPD_ETC)/mods-available/pool.conf"; \
	  else install -m 644 conf/pool.conf $(HTTPD_ETC)/mods-available/pool.conf; fi; \
	  echo "installed; next: a2enmod pool, then docs/building.md for mod_php beside mpm_event"; \
	else \
	  echo "installed; next: add 'LoadModule pool_module $(HTTPD_MODULES)/mod_pool.so' to httpd's configuration"; \
	fi

# pool.conf may be the administrator's by now: only an unchanged one goes.
uninstall:
	@if [ -d $(HTTPD_ETC)/mods-available ]; then \
	  a2dismod -q pool_php pool 2>/dev/null || true; \
	  cmp -s conf/pool.conf $(HTTPD_ETC)/mods-available/pool.conf && rm -f $(HTTPD_ETC)/mods-available/pool.conf; \
	  rm -f $(HTTPD_ETC)/mods-available/pool.load $(HTTPD_ETC)/mods-available/pool_php.load \
	    $(HTTPD_ETC)/mods-available/pool_php.conf; fi
	rm -f $(HTTPD_MODULES)/mod_pool.so

clean:
	$(CARGO) clean
	rm -rf build
