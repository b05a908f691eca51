# make run     a demonstration on https://127.0.0.1:8443, in the foreground
# make test    the whole test suite
# Both install what is missing: Debian's packages through apt (as root or with sudo), and a .venv with the locked
# dependencies.

PYTHON ?= $(shell command -v /usr/bin/python3 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= demo

RUN_PACKAGES  := softhsm2 openssl curl python3-venv
TEST_PACKAGES := $(RUN_PACKAGES) strongswan-pki libstrongswan-standard-plugins libstrongswan-extra-plugins \
                 default-jdk-headless libbcprov-java libbcpkix-java libbcutil-java libbctls-java chromium haproxy

.PHONY: run test lint types lock clean system-run system-test bench

run: system-run $(VENV)/run.stamp
	@sh tools/run-demo.sh $(BIN) $(DEMO)

test: system-test $(VENV)/dev.stamp $(BIN)/promtool $(BIN)/nginx
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

lock:
	sh requirements/lock.sh

# A round of measurements of about two minutes against a server of its own: figures and a page in bench-out/.
bench: system-run $(VENV)/dev.stamp
	$(BIN)/python -m bench.round --short --out bench-out $(ARGS)

system-run:
	@sh tools/system-packages.sh $(RUN_PACKAGES)

system-test:
	@sh tools/system-packages.sh $(TEST_PACKAGES)

$(VENV)/bin/python: | system-run
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: requirements/run.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --require-hashes -r requirements/run.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/dev.stamp: requirements/dev.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@ $(VENV)/run.stamp

# These alone: Debian's packages would start services.
$(BIN)/promtool: | $(VENV)/bin/python system-test
	sh tools/program.sh prometheus usr/bin/promtool $@

$(BIN)/nginx: | $(VENV)/bin/python system-test
	sh tools/program.sh nginx usr/sbin/nginx $@

clean:
	rm -rf $(VENV) build *.egg-info
