# make quickstart   set up, train both stages on the embedded default, show the result
# make test         set up, run the tests
# make demo         chat with the result of the quickstart in a browser
# make lint         ruff and mypy
# make docs         the documentation as a site in output/site; fails on a broken link
# make dataset-env  an environment of its own for downloading stage 1's pictures, .dataset-env
# make lmms-env     lmms-eval in an environment of its own over .venv, .lmms-env
# SEED=n chooses another seed of the quickstart; PYTHON=python3.12 another Python.

PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
NEEDED_KB := 8000000

.PHONY: quickstart test slow-test demo lint docs env dataset-env lmms-env clean

quickstart: env
	@$(BIN)/python -m minigpt4 quickstart --seed $(SEED)

test: env
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not browser"

slow-test: env
	@$(BIN)/python -m pytest -m "slow or browser"

demo: env
	@test -f output/quickstart/stage2.pth || { \
	  echo "error: there is nothing to chat with yet; run 'make quickstart' first"; exit 2; }
	@$(BIN)/python demo.py --cfg-path eval_configs/tiny_eval.yaml

lint: env
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

env: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "error: Python 3.10 or newer is needed, '$(PYTHON)' is not; say PYTHON=/path/of/python3"; exit 2; }
	@free=$$(df -Pk . | awk 'NR == 2 { print $$4 }'); [ "$$free" -ge $(NEEDED_KB) ] || { \
	  echo "error: about 8 GB of free disk are needed here, $$((free / 1000000)) GB are free"; exit 2; }
	@echo "== making .venv and installing into it (about 6 GB; a few minutes the first time)"
	@$(PYTHON) -m venv .venv || { \
	  echo "error: 'venv' does not work here; on Debian: apt-get install python3-venv"; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt || { \
	  echo "error: installing failed, pip's reason stands above; is there a network? Run make again to go on"; exit 2; }
	@touch $@

dataset-env: .dataset-env/installed

.dataset-env/installed: dataset/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null || { \
	  echo "error: img2dataset needs Python 3.11 or 3.12, '$(PYTHON)' is not; say PYTHON=/path/of/python3.11"; exit 2; }
	@echo "== making .dataset-env and installing img2dataset into it (about 1 GB)"
	@$(PYTHON) -m venv .dataset-env || { \
	  echo "error: 'venv' does not work here; on Debian: apt-get install python3-venv"; exit 2; }
	@.dataset-env/bin/python -m pip install --quiet --disable-pip-version-check -r dataset/requirements.txt || { \
	  echo "error: installing failed, pip's reason stands above; is there a network? Run make again to go on"; exit 2; }
	@touch $@

lmms-env: .lmms-env/installed

.lmms-env/installed: benchmarks/lmms_requirements.txt .venv/installed
	@echo "== making .lmms-env over .venv and installing lmms-eval into it (about 1 GB)"
	@$(BIN)/python -m venv .lmms-env
	@site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  echo "import site; site.addsitedir('$$($(BIN)/python -c "$$site")')" > \
	  "$$(.lmms-env/bin/python -c "$$site")/over_venv.pth"
	@.lmms-env/bin/python -m pip install --quiet --disable-pip-version-check -r $< || { \
	  echo "error: installing failed, pip's reason stands above; is there a network? Run make again to go on"; exit 2; }
	@touch $@

docs: env
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf .venv .dataset-env .lmms-env build *.egg-info .mypy_cache .ruff_cache .pytest_cache
