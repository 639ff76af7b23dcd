"""Fuzzes a reader with atheris, which isn't among the packages of the tests: `pip install` it.

    python tests/fuzz/fuzz.py READER CORPUS_FOLDER [-max_total_time=600]

Options are libFuzzer's. What is found is written to the working directory; when it is mended,
it goes to found.json.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pybuild"]):
    from readers import READERS, check
    from seeds import seeds


def main() -> None:
    program, reader, folder, *options = sys.argv
    if reader not in READERS:
        sys.exit(f"unknown reader {reader}: there are {', '.join(READERS)}")
    corpus = Path(folder)
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds(reader):
        corpus.joinpath(sha256(seed).hexdigest()[:16]).write_bytes(seed)
    atheris.Setup([program, folder, "-timeout=10", *options], lambda data: check(reader, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
