# make run [DATA=path] [PROFILE=name] [RESULTS=folder] [SET="key=value ..."]
# make studies
# make test
# make floor      the core tests with the oldest packages allowed
# make faults     the long form of tests/faults; writes results/faults.csv
# make report [RESULTS=folder]
# make submission GROUP=number [RESULTS=folder] [DRAFT=1]

VENV := .venv
PYTHON := $(VENV)/bin/python
export TF_CPP_MIN_LOG_LEVEL ?= 2

STUDIES := $(basename $(notdir $(wildcard studies/*.ipynb)))

.PHONY: run studies test floor faults lint report submission clean

# The run, the report and the hand-in share one results folder.
run: $(VENV)/ready
	$(PYTHON) -m covid_project run $(if $(DATA),--data "$(DATA)") $(if $(PROFILE),--profile $(PROFILE)) \
		$(if $(RESULTS),--results "$(RESULTS)") $(foreach change,$(SET),--set $(change))

# Every study on drawn phantoms, in small; on real images each is run by itself, with --data.
studies: $(VENV)/ready
	@set -e; for study in $(STUDIES); do $(PYTHON) -m covid_project run --study $$study; done

report: $(VENV)/ready
	$(PYTHON) -m covid_project report $(if $(RESULTS),--results "$(RESULTS)")

submission: $(VENV)/ready
	$(PYTHON) -m covid_project submission $(if $(GROUP),--group $(GROUP)) \
		$(if $(RESULTS),--results "$(RESULTS)") $(if $(DRAFT),--draft)

# Two processes: as many as the smallest machine has cores.
test: $(VENV)/ready lint
	$(PYTHON) -m pytest -n 2 --dist loadgroup

# Settings, data, models, training and explanations: what a release of TensorFlow or Keras can break.
CORE := settings storage data pipeline normalization augmentation models training tuning \
	checkpoints evaluation comparison calibration gradcam explainer experiment runner
FLOOR ?= .floor

floor: $(FLOOR)/ready
	$(FLOOR)/bin/python -m pytest $(wildcard $(CORE:%=tests/test_%.py)) tests/faults/test_strange_models.py

$(FLOOR)/ready: requirements-floor.txt
	python3.12 -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet -r requirements-floor.txt
	touch $@

faults: $(VENV)/ready
	$(PYTHON) -m pytest tests/faults -m long

lint: $(VENV)/ready
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

# The environment, made anew when the locked set of packages changes.
$(VENV)/ready: requirements.lock
	@python3.12 --version >/dev/null 2>&1 || { echo "Python 3.12 is missing: install it with 'pyenv install 3.12' or 'uv python install 3.12' (or from python.org), then try again."; exit 1; }
	python3.12 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --require-hashes -r requirements.lock
	touch $@

clean:
	rm -rf $(VENV) $(FLOOR) .cache results/demo submission
