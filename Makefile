# One line each; `./run.sh` does the work of setting up, so it stays the only place that knows how.
PYTHON_VENV := .venv/bin/python
UV := uv==0.13.9
PIP_AUDIT := pip-audit==2.10.1

.DEFAULT_GOAL := help
.PHONY: help install lock fmt lint types test cov run audit bench check clean

help:  ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
install:  ## set up .venv with everything: service, tests, lint tools
	@./run.sh install
lock: install  ## compile requirements/lock.txt anew, for Python 3.11 to 3.13 and every platform
	$(PYTHON_VENV) -m pip install --quiet $(UV) && $(PYTHON_VENV) -m uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command "make lock" --upgrade -o requirements/lock.txt requirements/runtime.txt requirements/test.txt requirements/lint.txt
fmt: install  ## rewrite the code as ruff wants it
	$(PYTHON_VENV) -m ruff check --fix . ; $(PYTHON_VENV) -m ruff format .
lint: install  ## ruff and shellcheck; changes nothing
	$(PYTHON_VENV) -m ruff check . && $(PYTHON_VENV) -m ruff format --check . && .venv/bin/shellcheck -xa run.sh deploy.sh .ci/run docs/ci/image.sh tests/support/stub_engine.sh
types: install  ## mypy --strict over code and tests
	$(PYTHON_VENV) -m mypy
test:  ## every test; ARGS="-k word" goes to pytest
	@./run.sh test $(ARGS)
cov:  ## every test, with the lines and branches they miss; fails under 95 %
	@./run.sh test --cov --cov-report=term-missing:skip-covered $(ARGS)
run:  ## start the service
	@./run.sh
audit: install  ## ask PyPI for advisories on what lock.txt pins; what it cannot ask about fails, too
	$(PYTHON_VENV) -m pip install --quiet $(UV) && $(PYTHON_VENV) -m uv tool run $(PIP_AUDIT) --strict --no-deps --disable-pip -r requirements/lock.txt
bench: install  ## measure the service beside FastEmbed called directly
	$(PYTHON_VENV) benchmarks/bench.py $(ARGS)
check: lint types test  ## what must pass before a commit, in this order; changes nothing
clean:  ## remove what tools and runs left behind; .venv stays
	rm -rf .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache && find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
