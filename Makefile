# Every target does its own set-up on a machine that has Python >= 3.11, make and a network (for the set-up only).
PYTHON ?= python3
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
VENV = .venv
# A second environment that holds only what a device installs, by the extras: it proves that the runtime needs no torch.
RUNTIME_VENV = .venv-runtime
SET_UP = pyproject.toml constraints.txt

# The tests look at reports and at the server's page in one of these.
BROWSERS = chromium chromium-browser google-chrome

.PHONY: setup browser demo android-assets test-android android-apk test fuzz test-rpi test-rpi-full test-fullsize \
	bench-fullsize fidelity faults soak docs lint fmt bench clean

setup: $(VENV)/test.stamp $(RUNTIME_VENV)/stamp

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cabochon needs Python 3.11 or newer: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(SET_UP) | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) --editable '.[convert,onnx]'
	@touch $@

$(VENV)/test.stamp: $(SET_UP) | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) torch
	$(VENV)/bin/python $(PIP_INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/demo.stamp $(VENV)/demo-litert.stamp

$(VENV)/train.stamp: $(VENV)/test.stamp
	$(VENV)/bin/python $(PIP_INSTALL) --editable '.[train]'
	@touch $@

$(RUNTIME_VENV)/stamp: $(SET_UP)
	@rm -rf $(RUNTIME_VENV)
	$(PYTHON) -m venv $(RUNTIME_VENV)
	$(RUNTIME_VENV)/bin/python $(PIP_INSTALL) '.[onnx,litert,constraints,video]'
	$(RUNTIME_VENV)/bin/python -m pip uninstall --quiet --yes cabochon
	@touch $@

browser:
	@for name in $(BROWSERS); do if command -v $$name >/dev/null; then exit 0; fi; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
	else \
		echo "The tests look at pages in a browser: install chromium (Debian: apt install chromium)." >&2; exit 1; \
	fi

$(VENV)/demo-litert.stamp: $(SET_UP) | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) torch
	$(VENV)/bin/python $(PIP_INSTALL) --editable '.[convert-litert]'
	@touch $@

# Convert the small model in this repository and let it translate sentences that it never heard. ENGINE=litert runs it on
# LiteRT, whose conversion needs torch.
ENGINE = onnx
ifeq ($(ENGINE),litert)
demo: $(VENV)/demo-litert.stamp
else
demo: $(VENV)/demo.stamp
endif
	$(VENV)/bin/python models/tiny/demo.py --engine $(ENGINE)

# A process per processor (four at most): each converts what it needs, and computes on one thread.
test: setup browser lint
	$(VENV)/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# What reads input from elsewhere, fuzzed for so many seconds each (Linux on x86-64, where there are wheels of atheris).
FUZZ_SECONDS = 300
FUZZ_PARSERS =
fuzz: $(VENV)/test.stamp
	$(VENV)/bin/python tests/fuzz/run.py $(FUZZ_SECONDS) $(FUZZ_PARSERS)

# A bundle of the small model, installed and tried on an emulated Raspberry Pi, and its services under a systemd that runs
# (as root): some minutes, and 2 GB of disk in build.
test-rpi: $(VENV)/test.stamp
	$(VENV)/bin/python rpi/test/run.py
	$(VENV)/bin/python rpi/test/services.py

# The same on both systems with both processors: what runs every night.
test-rpi-full: $(VENV)/test.stamp
	$(VENV)/bin/python rpi/test/run.py --full
	$(VENV)/bin/python rpi/test/services.py

# A random model of E2B's size: 14 GB of disk for a few minutes.
test-fullsize: setup
	$(VENV)/bin/python -m pytest -m fullsize -s

# The same against llama.cpp and transformers: 30 GB of disk in build/full-size, a C++ compiler, cmake, and an hour.
bench-fullsize: $(VENV)/test.stamp
	$(VENV)/bin/python benchmarks/full_size/measure.py

# What each recipe does to transcripts; needs espeak-ng.
fidelity: $(VENV)/train.stamp
	$(VENV)/bin/python benchmarks/fidelity.py

# Kills, full disks, little memory and replaced packages at random moments, for some minutes: a table of what was lost.
MINUTES = 5
faults: $(VENV)/test.stamp
	$(VENV)/bin/python benchmarks/faults.py --minutes $(MINUTES)

# Both servers under many clients, some of whom misbehave: make soak MINUTES=60.
soak: $(VENV)/test.stamp
	$(VENV)/bin/python benchmarks/soak.py --minutes $(MINUTES)

# What the Android app needs of the small model: assets, and vectors to test its Kotlin against.
ANDROID_RECIPE = int4-mixed
ANDROID_EXAMPLES = english_unseen_voice.wav:en:de german_unseen_voice.wav:de:en french_unseen_accent.wav:fr:es \
	spanish_seen_voice.wav:es:fr
android-assets: $(VENV)/demo.stamp
	$(VENV)/bin/cabochon-convert models/tiny build/tiny-$(ANDROID_RECIPE) --recipe $(ANDROID_RECIPE) --replace
	$(VENV)/bin/cabochon-convert android build/tiny-$(ANDROID_RECIPE) --app android_demo --languages en,de,fr,es \
		$(foreach each,$(ANDROID_EXAMPLES),--example $(subst :, ,models/tiny/demo/$(each)))

# The app's core on a JVM, with onnxruntime in a Python process: without rounding, so that the last digits of a log-mel
# cannot move an integer. Needs Debian on amd64 for junit and, without a JDK, root.
test-android: ANDROID_RECIPE = float
test-android: android-assets
	$(VENV)/bin/python android_demo/build_without_gradle.py test

# An APK to sideload, of the same sources, without an engine: see android_demo/README.md.
android-apk: android-assets
	$(VENV)/bin/python android_demo/build_without_gradle.py apk

# The picture of the architecture, from the imports in the code and the tables of CONTRIBUTING.md.
docs:
	$(PYTHON) docs/draw_imports.py

lint: $(VENV)/test.stamp
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

fmt: $(VENV)/test.stamp
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(VENV)/demo.stamp
	$(VENV)/bin/python benchmarks/speed.py

clean:
	rm -rf $(VENV) $(RUNTIME_VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
