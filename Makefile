# make run [DATA=path] [PROFILE=name] [RESULTS=folder] [SET="key=value ..."]
# make extras [the same]   seeds, ablations, calibration, tests of explanations, after `make run`
# make studies             the four studies on drawn images
# make test                the style check and the quick tests
# make test-all            the style check and all tests
# make lint                style, links of the documents, generated pages
# make docs                the documents as a site, in site/
# make docs-tables         docs/results.md and docs/benchmarks.md, from results/
# make pictures            docs/pictures, from a run on drawn images
# make floor               the course package's tests with the oldest packages allowed
# make newest              the same and the four notebooks with the newest packages on Python 3.13
# make faults              the long form of tests/faults; writes results/faults.csv
# make report [RESULTS=folder]
# make verify DATA=path [RESULTS=folder]   scores the run's models again, compares every figure
# make figures DATA=path [RESULTS=folder]  draws the figures that show images again, from the models
# make submission GROUP=number [RESULTS=folder] [DRAFT=1]

VENV := .venv
PYTHON := $(VENV)/bin/python
export TF_CPP_MIN_LOG_LEVEL ?= 2

# Where every parameter of a public function has its type and meaning.
DOCUMENTED = $(shell find covid_project covid_lab -name '*.py')

STUDIES := $(filter-out course_extras another_hospital,$(basename $(notdir $(wildcard studies/*.ipynb))))
OPTIONS = $(if $(DATA),--data "$(DATA)") $(if $(PROFILE),--profile $(PROFILE)) \
	$(if $(RESULTS),--results "$(RESULTS)") $(foreach change,$(SET),--set $(change))

.PHONY: run extras studies test test-all floor newest faults lint docs docs-tables pictures report verify \
	figures submission clean

# The run, the report and the hand-in share one results folder.
run: $(VENV)/ready
	$(PYTHON) -m covid_lab run $(OPTIONS)

extras: $(VENV)/ready
	$(PYTHON) -m covid_lab run --study course_extras $(OPTIONS)

# Every study on drawn images, in small; on real images each is run by itself, with --data.
studies: $(VENV)/ready
	@set -e; for study in $(STUDIES); do $(PYTHON) -m covid_lab run --study $$study; done

report: $(VENV)/ready
	$(PYTHON) -m covid_lab report $(if $(RESULTS),--results "$(RESULTS)")

verify: $(VENV)/ready
	$(PYTHON) -m covid_lab verify --data "$(DATA)" $(if $(RESULTS),--results "$(RESULTS)")

figures: $(VENV)/ready
	$(PYTHON) -m covid_lab figures --data "$(DATA)" $(if $(RESULTS),--results "$(RESULTS)")

submission: $(VENV)/ready
	$(PYTHON) -m covid_lab handin $(if $(GROUP),--group $(GROUP)) \
		$(if $(RESULTS),--results "$(RESULTS)") $(if $(DRAFT),--draft)

# Two processes: as many as the smallest machine has cores.
test: $(VENV)/ready lint
	$(PYTHON) -m pytest -n 2 --dist loadgroup -m "not slow and not long"

test-all: $(VENV)/ready lint
	$(PYTHON) -m pytest -n 2 --dist loadgroup

faults: $(VENV)/ready
	$(PYTHON) -m pytest tests/faults -m long

lint: $(VENV)/ready
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m covid_lab.documentation --check
	$(VENV)/bin/numpydoc lint $(DOCUMENTED)

docs-tables: $(VENV)/ready
	$(PYTHON) -m covid_lab.documentation

docs: $(VENV)/ready
	$(PYTHON) -m pip install --quiet -r requirements-docs.txt
	$(PYTHON) -m mkdocs build --strict

pictures: $(VENV)/ready
	test -f results/demo/metrics.csv || $(PYTHON) -m covid_lab run
	$(PYTHON) -m covid_lab.documentation.pictures results/demo

# The environment, made anew when the locked set of packages changes.
$(VENV)/ready: requirements.lock
	@python3.12 --version >/dev/null 2>&1 || { echo "Python 3.12 is missing: install it with 'pyenv install 3.12' or 'uv python install 3.12' (or from python.org), then try again."; exit 1; }
	python3.12 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --require-hashes -r requirements.lock
	touch $@

# ---- other versions of the packages --------------------------------------------------------------

FLOOR ?= .floor
NEWEST ?= .newest
PYTHON313 ?= python3.13

floor: $(FLOOR)/ready
	$(FLOOR)/bin/python -m pytest tests/project

$(FLOOR)/ready: requirements-floor.txt
	python3.12 -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet -r requirements-floor.txt
	touch $@

# Without the pins: whatever is the newest of each package.
newest: $(NEWEST)/ready
	$(NEWEST)/bin/python -m pytest tests/project -k "not lock"
	$(NEWEST)/bin/python -m covid_lab run --results .cache/newest

$(NEWEST)/ready: requirements.txt
	@$(PYTHON313) --version >/dev/null 2>&1 || { echo "Python 3.13 is missing: install it, or name another with PYTHON313=python3.14."; exit 1; }
	$(PYTHON313) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade numpy tensorflow scikit-learn pandas \
		matplotlib seaborn imbalanced-learn pyaml ipykernel nbclient nbconvert filelock pytest \
		pytest-xdist hypothesis packaging
	touch $@

clean:
	rm -rf $(VENV) $(FLOOR) $(NEWEST) .cache results/demo submission site
