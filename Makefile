# Every target sets up what it needs by itself, in .venv. `make PYTHON=python3.12` takes another Python.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test check lab app docs pictures readme bench constraints clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): settings.ini setup.py constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

venv: $(READY) ## The environment: .venv with the exact versions of constraints.txt

demo: $(READY) ## A weak verifier learns to use a prover: progress, a curve and a table
	$(BIN)/nip demo

test: check ## All that CI runs: check, then every notebook and tests/ (ARGS="--slow" for slow ones too)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

check: $(READY) ## Notebooks exported and clean, format, lint
	$(BIN)/python tools/check.py

lab: $(READY) ## JupyterLab, opened on index.ipynb
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter lab index.ipynb

app: $(READY) ## The builder as a web app, on this machine (ARGS="--port 8866 --theme dark")
	$(BIN)/nip app $(ARGS)

docs: $(READY) ## The site, from the notebooks, in _docs/
	$(BIN)/python tools/build_docs.py

pictures: $(READY) ## The builder's pictures in images/, anew from a browser (some minutes)
	NIP_SCREENSHOTS=images $(BIN)/python -m pytest --slow tests/test_browser.py -k documentation

readme: $(READY) ## README.md, from index.ipynb
	$(BIN)/python tools/build_readme.py

bench: $(READY) ## Frames per second, memory and import time of a fixed workload
	$(BIN)/nip bench

constraints: $(READY) ## constraints.txt, anew from the versions in .venv
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' | grep '==' > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean: ## Remove what is built; .venv, runs and data sets stay
	rm -rf _docs _proc build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
	find nip nbs tests tools -name __pycache__ -prune -exec rm -rf {} +
