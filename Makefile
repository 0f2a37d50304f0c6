# make demo: train, evaluate and segment on generated data in one to four minutes.   make test: the fast tests.
PYTHON ?= python3
VENV   ?= .venv
RUN     = $(VENV)/bin/python
DEMO   ?= build/demo
LABEL_VENV ?= .venv-label
DEPLOY_VENV ?= .venv-deploy
BUNDLE  = bundles/lits_coarse
DEMO_OPTIONS = --output_dir $(DEMO)/eval --ckpt_dir $(DEMO)/models

.PHONY: demo test test-slow torture torture-quick fuzz label-test deploy-test lint docs clean

$(VENV)/base: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed, this is ' + sys.version)"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/test: $(VENV)/base
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,dev]"
	touch $@

demo: $(VENV)/base
	rm -rf $(DEMO)
	$(RUN) -m monai.bundle run --config_file $(BUNDLE)/configs/train.json --epochs 24 --spatial_size "[64,64,32]" $(DEMO_OPTIONS)
	$(RUN) -m monai.bundle run --config_file "['$(BUNDLE)/configs/train.json','$(BUNDLE)/configs/evaluate.json']" $(DEMO_OPTIONS)
	$(RUN) -m med3d_ext phantoms lits --folder $(DEMO)/new_patient --cases 1 --seed 4711
	$(RUN) -m monai.bundle run --config_file $(BUNDLE)/configs/inference.json --dataset_dir $(DEMO)/new_patient \
	    --ckpt_dir $(DEMO)/models --output_dir $(DEMO)/segmentation
	@echo
	@echo "curves             $(DEMO)/eval/loss.png, $(DEMO)/eval/dice.png"
	@echo "test cases         $(DEMO)/eval/test/summary.json, $(DEMO)/eval/test/overlay_*.png"
	@echo "the new patient    $(DEMO)/segmentation"

test: $(VENV)/test
	$(RUN) -m pytest -n 2 --cov --cov-report=term-missing:skip-covered

test-slow: $(VENV)/test
	$(RUN) -m pytest -m slow

# Interrupted, starved, fed rubbish, attacked: under 40 minutes on two cores. TORTURE_SEED=1 draws other moments and inputs.
torture: $(VENV)/test
	$(RUN) -m pytest tests/torture -m torture -n 2 --dist worksteal

# Its part of two minutes.
torture-quick: $(VENV)/test
	$(RUN) -m pytest tests/torture -m quick -n 2 --dist worksteal

# Ten minutes for each reader.
fuzz: $(VENV)/test
	TORTURE_FUZZ_SECONDS=600 $(RUN) -m pytest tests/torture/test_fuzz.py -m torture -n 2

# MONAI Label really started, in an environment of its own (3 GB); minutes for each bundle.
$(LABEL_VENV)/done: tests/label/requirements.txt
	$(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/label/requirements.txt
	$(LABEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps monailabel==0.8.5
	touch $@

label-test: $(VENV)/test $(LABEL_VENV)/done
	mkdir -p build
	LABEL_PYTHON=$(CURDIR)/$(LABEL_VENV)/bin/python $(RUN) -m pytest --basetemp build/label-test tests/label/label_checks.py

# MONAI Deploy's bundle operator really run on CPU, in an environment of its own (3 GB).
$(DEPLOY_VENV)/done: tests/deploy/requirements.txt
	$(PYTHON) -m venv $(DEPLOY_VENV)
	$(DEPLOY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/deploy/requirements.txt
	$(DEPLOY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    monai-deploy-app-sdk==4.0.0 holoscan-cu13==4.0.0 holoscan-cli==5.0.0
	touch $@

deploy-test: $(VENV)/test $(DEPLOY_VENV)/done
	mkdir -p build
	DEPLOY_PYTHON=$(CURDIR)/$(DEPLOY_VENV)/bin/python $(RUN) -m pytest --basetemp build/deploy-test tests/deploy/deploy_checks.py

lint: $(VENV)/test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(VENV)/base
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(RUN) -m sphinx -W -b html docs docs/_build

clean:
	rm -rf $(VENV) $(LABEL_VENV) $(DEPLOY_VENV) build .pytest_cache .mypy_cache .ruff_cache
