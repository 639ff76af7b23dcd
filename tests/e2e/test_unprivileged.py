"""The command line as a user who has nothing but the right to open containerd's socket."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandline import CommandLine, Ended, OnContainerd, check_decent

import pybuild as pybuild_package
import pybuild_containerd
from promptness import AT_ONCE
from pybuild.testkit.baseimages import busybox_layout
from pybuild.testkit.containerd import PrivateContainerd, check_nothing_left, private_containerd
from pybuild.testkit.layouts import import_into_containerd

pytestmark = [pytest.mark.root, pytest.mark.containerd]

NOBODY = 65534
DOCKERFILE = """\
FROM busybox AS tools
RUN echo tool > /tool && touch -d @7 /tool /

FROM busybox
ENV WHO=nobody
COPY --chown=www-data:users --chmod=750 one two /data/
RUN --mount=type=bind,from=tools,target=/tools cp /tools/tool /tool && touch -d @8 /tool /
WORKDIR /work/below
USER www-data
WORKDIR /work/own
USER root
RUN id -u && rm -r /home /data/one && mkdir -m 775 /home /mine && touch /mine/who \\
 && chown 33:33 /tool /mine/who && chmod 4755 /tool && touch -d @9 /home /data /mine/who /mine /
RUN true
COPY --from=tools --link /tool /linked/
ADD archive.tar /unpacked/
USER www-data
RUN id -un > /mine/who && touch -d @10 /mine/who
CMD ["cat", "/mine/who", "/tool", "/linked/tool"]
"""

# RUNs that change files below folders: containerd's own comparison, which this user depends
# on, adds the unchanged folders above a change to a layer; walking the changes doesn't
BELOW_FOLDERS = [5, 8]


def tree_of(command: OnContainerd, image: str) -> dict[str, tuple[object, ...]]:
    """What an image holds: all but the times of folders, which layers needn't repeat."""
    mounted = command.folder / f"mounted-{image}"
    mounted.mkdir()
    command.ctr("images", "mount", f"docker.io/library/{image}:latest", str(mounted))
    found: dict[str, tuple[object, ...]] = {}
    try:
        for path in mounted.rglob("*"):
            stat = path.lstat()
            content: object = None
            if path.is_symlink():
                content = path.readlink()
            elif path.is_file():
                content = stat.st_mtime_ns, path.read_bytes()
            name = str(path.relative_to(mounted))
            found[name] = stat.st_mode, stat.st_uid, stat.st_gid, content
    finally:
        command.ctr("images", "unmount", "--rm", str(mounted))
    return found


def install(folder: Path) -> None:
    """Copy pybuild and what it needs to where everybody can read it, as pip would."""
    todo, done = ["pybuild-oci"], set()
    while todo:
        name = todo.pop()
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for other versions of Python
        done.add(name)
        for file in found.files or ():
            if ".." in file.parts or file.suffix in {".pth", ".pyc"}:
                continue
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), target)
        required = [text for text in found.requires or () if "extra ==" not in text]
        names = [re.split(r"[^\w.-]", text)[0] for text in required]
        todo += [name for name in names if name not in done]
    for package in (pybuild_package, pybuild_containerd):
        source = Path(str(package.__file__)).parent
        without = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / source.name, ignore=without, dirs_exist_ok=True)


class Nobody(OnContainerd):
    """``pybuild`` as the user nobody, without any group of root's."""

    def __init__(self, daemon: PrivateContainerd, folder: Path, packages: Path) -> None:
        super().__init__(daemon, folder, "nobody")
        os.chown(self.home, NOBODY, NOBODY)
        self.environment |= {"PYTHONPATH": str(packages), "TMPDIR": str(self.home)}
        python = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
        ids = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        self.program = ("setpriv", *ids, python, "-P", "-m", "pybuild")


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateContainerd]:
    """A containerd whose socket is open to the group of nobody."""
    with private_containerd(socket_gid=NOBODY) as daemon, tempfile.TemporaryDirectory() as made:
        layout = busybox_layout(Path(made) / "layout")
        for namespace in ("default", "nobody"):
            import_into_containerd(layout, daemon.address, namespace)
        yield daemon


@pytest.fixture(scope="module")
def packages() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        install(folder)
        yield folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        path = Path(made)
        path.chmod(0o755)
        yield path


@pytest.fixture
def nobody(daemon: PrivateContainerd, folder: Path, packages: Path) -> Iterator[Nobody]:
    yield Nobody(daemon, folder, packages)
    check_nothing_left(daemon.address, "nobody", daemon.folder)


def make_context(command: CommandLine) -> Path:
    context = command.context(DOCKERFILE, one="1", two="2")
    subprocess.run(["tar", "-cf", "archive.tar", "one", "two"], cwd=context, check=True)
    for path in context.iterdir():
        os.utime(path, (1, 1))
    return context


def test_an_image_is_built_as_root_builds_it(nobody: Nobody, daemon: PrivateContainerd) -> None:
    context = make_context(nobody)
    epoch = ("--build-arg", "SOURCE_DATE_EPOCH=1700000000")
    made = nobody.build("--progress=plain", "-t", "by-nobody", *epoch, context)
    assert re.search(r"^#\d+ \d\.\d{3} 0$", made.err, re.MULTILINE)  # root in the container
    assert nobody.run("by-nobody:latest") == "www-data\ntool\ntool\n"
    listed = nobody.run("by-nobody:latest", "stat", "-c", "%n %u:%g %a", "/data/two", "/tool")
    assert listed.splitlines() == ["/data/two 33:100 750", "/tool 33:33 4755"]
    owners = nobody.run("by-nobody:latest", "stat", "-c", "%u", "/work/below", "/work/own")
    assert owners.split() == ["0", "33"]
    assert nobody.run("by-nobody:latest", "ls", "/home", "/data").split() == [
        "/data:",
        "two",
        "/home:",
    ]

    root_folder = nobody.folder / "root"
    root_folder.mkdir()
    root = OnContainerd(daemon, root_folder)
    by_root = root.build("-t", "by-root", *epoch, context)
    differing = [
        number
        for number, (mine, roots) in enumerate(
            zip(nobody.diff_ids(made.digest), root.diff_ids(by_root.digest), strict=True)
        )
        if mine != roots
    ]
    assert differing == BELOW_FOLDERS
    assert tree_of(nobody, "by-nobody") == tree_of(root, "by-root")
    again = nobody.build("-t", "by-nobody", *epoch, context)
    assert nobody.diff_ids(again.digest) == nobody.diff_ids(made.digest)
    root.check_nothing_left()


def test_the_doctor_knows_what_this_user_can(nobody: Nobody) -> None:
    said = nobody.build("doctor").out
    assert re.search(r"ok +backend containerd +available", said)
    assert re.search(r"reads snapshots itself +no", said)


def test_a_failing_run_and_a_missing_file_leave_nothing(nobody: Nobody) -> None:
    said = nobody.fail(1, "-q", nobody.context("FROM busybox\nRUN echo said; exit 5\n"))
    assert "exit code: 5" in said
    assert "  | said" in said
    nobody.fail(1, nobody.context("FROM busybox\nCOPY nothing /\n"))


def test_a_file_of_the_context_that_this_user_cant_read(nobody: Nobody) -> None:
    context = nobody.context("FROM scratch\nCOPY . /\n", secret="x")
    (context / "secret").chmod(0o600)
    said = nobody.fail(3, context)
    assert "secret" in said
    assert "denied" in said


def test_an_interrupt_ends_the_process(nobody: Nobody) -> None:
    context = nobody.context("FROM busybox\nRUN echo started; sleep 1000\n")
    with nobody.start("--progress=plain", context) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.endswith(" started\n"):
                break
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - begun < AT_ONCE


def test_a_forbidden_socket(nobody: Nobody, containerd: PrivateContainerd) -> None:
    context = nobody.context("FROM busybox\nRUN true\n")
    ended: Ended = nobody("--containerd-address", containerd.address, context)
    assert ended.code == 4
    check_decent(ended.err)
    error, hint = ended.err.splitlines()[-2:]
    assert containerd.address in error
    assert hint.startswith("hint: ")
    doctor = nobody("doctor", "--containerd-address", containerd.address)
    assert doctor.code == 4
    assert containerd.address in doctor.out


def test_files_of_an_image_become_the_users_own(nobody: Nobody) -> None:
    out = nobody.home / "out"
    context = nobody.context(
        "FROM busybox\nRUN cp /bin/busybox /su && chmod 4755 /su && mkfifo /fifo"
        " && mkdir -m 500 /closed && echo x > /closed/x && ln -s /etc/shadow /link\n"
    )
    made = nobody.build("-o", out, context)
    assert "fifo can't be made here: only root makes special files" in made.err
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in out.rglob("*")} == {
        (NOBODY, NOBODY)
    }
    assert (out / "su").stat().st_mode & 0o7777 == 0o755
    assert (out / "closed").stat().st_mode & 0o777 == 0o500
    assert (out / "link").is_symlink()
    again = nobody.build("-o", out, context)
    assert again.digest.startswith("sha256:")
