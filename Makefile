# Two commands set everything up: `make demo` and `make test`. Both share one virtual environment.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   := runs/demo
# What the checks need beyond the product itself; `make demo` installs the product alone.
.PHONY: demo test lint quick record clean

$(VENV)/installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/installed

demo: $(VENV)/installed
	@rm -rf $(DEMO)
	$(BIN)/odonata train siglip --steps 600 --eval-every 200 --data.augment none --data.workers 1 --out $(DEMO)
	$(BIN)/odonata evaluate $(DEMO) --retrieval heldout --zeroshot scenes-classes:n=6400
	@echo "report: $(DEMO)/report.html"

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright src
	$(BIN)/lint-imports

quick: $(VENV)/installed-dev
	$(BIN)/pytest -n auto -m "not slow"

test: lint
	$(BIN)/pytest -n 2 --verify-marks

# Runs everything and writes which test shows which mark of which method, for `odonata list`.
record: lint
	$(BIN)/pytest -n 2 --record-marks

clean:
	rm -rf $(VENV) runs build dist *.egg-info
