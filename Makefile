# One line each. Only `./run.sh` knows how to set up .venv.
PYTHON_VENV := .venv/bin/python
UV := uv==0.13.9
PIP_AUDIT := pip-audit==2.10.1

.DEFAULT_GOAL := help
.PHONY: help install lock fmt lint types test cov run audit bench check clean

help:  ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
install:  ## set up .venv with everything: service, tests, lint tools
	@./run.sh install
lock: install  ## update requirements/lock.txt, for Python 3.11 to 3.13 and all platforms
	$(PYTHON_VENV) -m pip install --quiet $(UV) && $(PYTHON_VENV) -m uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command "make lock" --upgrade -o requirements/lock.txt requirements/runtime.txt requirements/test.txt requirements/lint.txt
fmt: install  ## format the code and fix what ruff can fix
	$(PYTHON_VENV) -m ruff check --fix . ; $(PYTHON_VENV) -m ruff format .
lint: install  ## ruff and shellcheck; changes nothing
	$(PYTHON_VENV) -m ruff check . && $(PYTHON_VENV) -m ruff format --check . && .venv/bin/shellcheck -xa run.sh deploy.sh .ci/run .ci/newer-nginx deploy/compose/start-nginx.sh docs/ci/image.sh tests/support/stub_engine.sh
types: install  ## mypy --strict on code and tests
	$(PYTHON_VENV) -m mypy
test:  ## run the tests; ARGS="-k word" goes to pytest
	@./run.sh test $(ARGS)
cov:  ## run the tests, and list lines and branches they miss; fails below the limit in pyproject.toml
	@./run.sh test --cov --cov-report=term-missing:skip-covered $(ARGS)
run:  ## start the service
	@./run.sh
audit: install  ## look up advisories for everything that lock.txt pins; a package that cannot be looked up fails
	$(PYTHON_VENV) -m pip install --quiet $(UV) && $(PYTHON_VENV) -m uv tool run $(PIP_AUDIT) --strict --no-deps --disable-pip -r requirements/lock.txt
bench: install  ## compare the service with FastEmbed called directly
	$(PYTHON_VENV) benchmarks/bench.py $(ARGS)
check: lint types test  ## what must pass before a commit; changes nothing
clean:  ## remove files that tools leave behind, but not .venv
	rm -rf .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache && find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
