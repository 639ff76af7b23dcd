"""The completion scripts, in the shells that they are for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pybuild.completion import SHELLS, completion_script
from pybuild.errors import UsageError

pytestmark = pytest.mark.shells

ASK_BASH = """
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(( $# - 1 ))
compopt() { :; }
_pybuild
printf '%s\\n' "${COMPREPLY[@]}"
"""
ASK_ZSH = """
zmodload zsh/zpty
zpty asked zsh -f
zpty -w asked "PS1= PS2= RPS1=; unset zle_bracketed_paste; autoload -Uz compinit; compinit -u -d $1.dump"
zpty -w asked "zstyle ':completion:*' list-prompt ''; LISTMAX=1000; source $1; stty -echo cols 200; echo READY"
zpty -r asked got '*READY*READY*'
zpty -w -n asked "$2"$'\\t\\t'
all=
for attempt in {1..200}; do
    while zpty -r -t asked got; do all+=$got; done
    [[ $all == *"$3"* ]] && break
    sleep 0.1
done
print -r -- "$all"
zpty -d asked
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and a command pybuild that knows the images of a store."""
    (tmp_path / "app").mkdir()
    (tmp_path / "other file").write_text("")
    (tmp_path / "Dockerfile").write_text("FROM a AS base\nRUN x\nfrom base as Tests\n")
    (tmp_path / "app" / "Dockerfile").write_text("FROM a AS inner\n")
    programs = tmp_path / "programs"
    programs.mkdir()
    program = programs / "pybuild"
    program.write_text("#!/bin/sh\nprintf 'NAME  ID\\nhello:1  a\\n<none>  b\\nhello:2  c\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def script(shell: str, folder: Path) -> Path:
    path = folder / "programs" / f"completion.{shell}"
    path.write_text(completion_script([shell], "1"))
    return path


def completed(shell: str, folder: Path, *words: str) -> list[str]:
    """What the shell offers for the last of `words`, which may be empty."""
    path = script(shell, folder)
    if shell == "bash":
        command = ["bash", "-c", ASK_BASH, "bash", str(path), "pybuild", *words]
    else:
        line = " ".join(["pybuild", *words])
        command = ["fish", "--no-config", "-c", f"source {path}; complete -C '{line}'"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return [line.split("\t")[0] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_words_are_completed(folder: Path, shell: str) -> None:
    def offered(*words: str) -> list[str]:
        return sorted(completed(shell, folder, *words))

    assert offered("--build-a") == ["--build-arg", "--build-arg-file"]
    assert offered("--progress", "") == ["auto", "plain", "rawjson", "tty"]
    assert offered("--target", "") == ["Tests", "base"]
    assert offered("-f", "app/Dockerfile", "--target", "") == ["inner"]
    assert offered("build", "app", "--target", "") == ["inner"]
    assert offered("hist") == ["history"]
    assert offered("inspect", "") == ["hello:1", "hello:2"]
    assert offered("run", "--wor") == ["--workdir"]
    assert offered("prune", "--dang") == ["--dangling"]
    assert offered("completion", "") == sorted(SHELLS)
    assert offered("--network", "") == []
    assert [name.rstrip("/") for name in offered("ap")] == ["app"]
    assert offered("df", "--tag") == []


def test_bash_completes_behind_an_equals_sign_and_names_with_spaces(folder: Path) -> None:
    assert completed("bash", folder, "--progress", "=", "t") == ["tty"]
    assert completed("bash", folder, "--target", "=") == ["base", "Tests"]
    assert completed("bash", folder, "-f", "other") == ["other file"]


def test_zsh_completes_words(folder: Path) -> None:
    path = script("zsh", folder)

    for line, expected in (
        ("pybuild --progress ", "rawjson"),
        ("pybuild -f app/Dockerfile --target ", "inner"),
        ("pybuild inspect ", "hello:2"),
        ("pybuild prune --", "--dangling"),
        ("pybuild ", "List the images"),
    ):
        command = ["zsh", "-f", "-c", ASK_ZSH, "zsh", str(path), line, expected]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        assert expected in done.stdout


def test_another_shell_is_refused() -> None:
    for words in ([], ["csh"], ["bash", "zsh"]):
        with pytest.raises(UsageError, match="name of a shell"):
            completion_script(words, "1")


def test_the_command_prints_the_script() -> None:
    command = [sys.executable, "-m", "pybuild", "completion", "fish"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == completion_script(["fish"], "1")
