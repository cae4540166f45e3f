# One line each. Only `./run.sh` knows how to set up .venv.
PYTHON_VENV := .venv/bin/python
UV := $(PYTHON_VENV) -m uv
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --custom-compile-command "make lock"
# A part of lock.txt, at the same versions. Only what is in the part is installed with it.
PART := $(LOCK) --no-annotate -c requirements/lock.txt -o requirements/lock
PIP_AUDIT := pip-audit==2.10.1
CYCLONEDX := cyclonedx-bom==7.5.0

.DEFAULT_GOAL := help
.PHONY: help install lock wheels sbom fmt lint types test clients cov run audit bench check clean

help:  ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
install:  ## set up .venv with everything: service, tests, lint tools
	@./run.sh install
lock: install  ## write requirements/lock*.txt for all Pythons and platforms; ARGS=--upgrade takes newer versions
	$(LOCK) $(ARGS) -o requirements/lock.txt requirements/runtime.txt requirements/test.txt requirements/lint.txt
	$(PART)-runtime.txt requirements/runtime.txt
	$(PART)-test.txt requirements/runtime.txt requirements/test.txt
	$(PART)-arrow.txt requirements/arrow.txt
	$(PART)-tracing.txt requirements/tracing.txt
	$(PART)-ray.txt $(ARGS) requirements/ray.txt
	for part in $(notdir $(wildcard requirements/clients-*.txt)); do $(LOCK) $(ARGS) --no-annotate -o requirements/lock-$$part requirements/$$part || exit 1; done
wheels: install  ## download all that is locked, by its hashes, for each platform and Python; removes it again
	$(PYTHON_VENV) deploy/locked_wheels.py
sbom: install  ## write sbom.cdx.json: the packages that the service installs on this machine, as CycloneDX
	$(UV) venv --quiet --clear .sbom && $(UV) pip install --quiet --python .sbom --require-hashes --only-binary :all: -r requirements/lock-runtime.txt && $(UV) tool run --from $(CYCLONEDX) cyclonedx-py environment --output-reproducible --output-file sbom.cdx.json .sbom ; status=$$? ; rm -rf .sbom ; exit $$status
fmt: install  ## format the code and fix what ruff can fix
	$(PYTHON_VENV) -m ruff check --fix . ; $(PYTHON_VENV) -m ruff format .
lint: install  ## ruff, shellcheck, Biome and html-validate; changes nothing
	$(PYTHON_VENV) -m ruff check . && $(PYTHON_VENV) -m ruff format --check . && .venv/bin/shellcheck -xa run.sh deploy.sh .ci/run .ci/newer-nginx .ci/lint-web tests/clients/install.sh deploy/compose/start-nginx.sh docs/ci/image.sh tests/support/stub_engine.sh && bash .ci/lint-web
types: install  ## mypy --strict on code and tests
	$(PYTHON_VENV) -m mypy
test:  ## run the tests; ARGS="-k word" goes to pytest
	@./run.sh test $(ARGS)
clients: install  ## install the client libraries that tests/clients/ runs: ./run.sh test -m clients
	@bash tests/clients/install.sh
cov:  ## run the tests, and list lines and branches they miss; fails below the limit in pyproject.toml
	@./run.sh test -n 0 -m processes --cov --cov-report= --cov-fail-under=0
	@./run.sh test --cov --cov-append --cov-report=term-missing:skip-covered $(ARGS)
run:  ## start the service
	@./run.sh
audit: install  ## look up advisories for everything that is locked; a package that cannot be looked up fails
	$(UV) tool run $(PIP_AUDIT) --strict --require-hashes --disable-pip -r requirements/lock.txt -r requirements/lock-ray.txt
bench: install  ## compare the service with FastEmbed called directly
	$(PYTHON_VENV) benchmarks/bench.py $(ARGS)
check: lint types test  ## what must pass before a commit; changes nothing
clean:  ## remove files that tools leave behind, but not .venv
	rm -rf .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache && find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
