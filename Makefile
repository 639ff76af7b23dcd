# Every target sets up what it needs first, with scripts/setup.
.PHONY: sample test check bench clean

# Build samples/hello and run it: neither root nor a daemon is needed.
sample:
	scripts/setup sample
	.venv/bin/python scripts/run_sample.py samples/hello

# Lint, types and all tests.
test:
	scripts/setup test
	scripts/check

check:
	scripts/check

# What steps and start-up cost; see bench/ for whole builds beside other builders.
bench:
	scripts/setup test
	.venv/bin/python bench/overhead.py
	.venv/bin/python bench/embedded.py
	.venv/bin/python bench/startup.py

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build
