"""The examples of docs/api.md and README.md, on the default backend with a store that has busybox."""

from __future__ import annotations

import doctest
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding import Stores, check_store

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "api.md"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")


@pytest.fixture(autouse=True)
def usual_store(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever names no store gets one that has busybox."""
    with stores.lent() as root:
        cache = root.with_name(f"cache-of-{root.name}")
        (cache / "pybuild").mkdir(parents=True)
        (cache / "pybuild" / "store").symlink_to(root)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        yield
        check_store(root)


def test_the_examples_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = DOCUMENT.read_text().replace("```", "")  # a fence ends an example's output
    examples = doctest.DocTestParser().get_doctest(text, {}, DOCUMENT.name, str(DOCUMENT), 0)
    assert len(examples.examples) > 20
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(examples, out=told.append).failed == 0, "".join(told)


def test_the_readmes_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = (ROOT / "README.md").read_text().partition("## In Python")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2
    program = tmp_path / "readme.py"
    program.write_text("".join(blocks))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(program))
    assert capsys.readouterr().out.startswith("sha256:")
