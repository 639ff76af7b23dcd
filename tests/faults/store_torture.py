"""Processes at work on one store, which are killed or have others at work beside them.

Run as a program of one thread, so that it can make processes by fork: starting Python anew
for each would take most of the time. It ends with 0, or with what went wrong.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pybuild.errors import ImageNotFound
from pybuild.files.layerfiles import LayerFiles
from pybuild.imagestore import PruneRequest
from pybuild.oci.descriptor import digest_of
from pybuild.oci.reference import parse_reference
from pybuild_embedded.store import Store
from storing import FLAVOUR, disk_usage, images_of, put_folder, put_image, put_layer

EVERYTHING = PruneRequest(images=True, all_images=True)
# functions written in C that change files or rows
CHANGES = {"execute", "executemany", "rename", "replace", "unlink", "mkdir", "rmdir", "open"}
CHANGES |= {"write", "fsync", "flock", "close", "chmod", "scandir"}
STEPS = 4


def build(store: Store, name: str) -> None:
    """What a build does: each step from the cache, or made; then all of it must be there."""
    layers = ()
    for number in range(STEPS):
        key = f"{name} {number}"
        step = store.step(key)
        if step is None:
            layers = (*layers, put_layer(store, key.encode()))
            chain = store.record_layers(layers)
            store.record_step(key, chain, own=True)
        else:
            layers, chain = step.layers, step.chain
        folder = store.folder(chain, FLAVOUR) or put_folder(store, layers, key.encode())
        assert (folder.fs / "file").read_bytes() == key.encode()
    store.new_folder()
    store.new_file().write_bytes(b"unfinished")
    (store.cache_folder(name).fs / "file").write_bytes(b"cached")
    put_image(store, name, layers=layers)
    for layer in layers:
        with store.open_blob(layer.blob.digest) as blob:
            assert digest_of(blob.read()) == layer.blob.digest
    files = LayerFiles(store.open_blob, store.index_folder, store.session.ingest)
    assert files.tree(layers).get(b"file")


def session(root: Path, seed: int) -> None:
    """A build, and now and then a user who tidies up."""
    chance = random.Random(seed)  # noqa: S311 - a choice of work
    with Store.open(root) as store:
        build(store, f"app{chance.randrange(3)}")
        images = images_of(store)
        if chance.random() < 0.3:
            found = images.images()
            with suppress(ImageNotFound, IndexError):  # others remove them as well
                images.tag(found[-1].digest, parse_reference("tagged"))
                images.remove(found[-1].digest)
        if chance.random() < 0.3:
            images.prune(EVERYTHING)


def forked(work: Callable[[], object]) -> int:
    """Do `work` in a new process; its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:  # noqa: BLE001 - the process ends here
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def assert_sound(root: Path, whole: int) -> None:
    """Nothing is damaged, a build works, and after it all can be removed. `whole` is the rest."""
    with Store.open(root) as store:
        assert [x.name for x in (root / "sessions").iterdir()] == [store.session.ident]
        assert list((root / "ingest").iterdir()) == []
        assert images_of(store).check(repair=False) == []
        build(store, "after")
    time.sleep(0.005)  # the file system's clock ticks
    with Store.open(root) as store:
        images_of(store).prune(EVERYTHING)
        assert images_of(store).images() == []
    left = [str(x) for x in root.rglob("*") if x.is_file()]
    assert sorted(Path(x).name for x in left) == [*"01234567", "db.sqlite", "format"], left
    assert disk_usage(root) < whole + (1 << 20)


def empty_size(root: Path) -> int:
    with Store.open(root) as store:
        build(store, "after")
    return disk_usage(root)


def killed_at_random(root: Path) -> None:
    """A few hundred processes that are killed some milliseconds after they began."""
    whole = empty_size(root)
    chance = random.Random(1)  # noqa: S311 - moments
    for number in range(200):
        pid = forked(lambda seed=number: session(root, seed))
        time.sleep(chance.random() * 0.05)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) in {0, -signal.SIGKILL}
        if number % 20 == 0:
            assert_sound(root, whole)
    assert_sound(root, whole)


def killed_at_each_point(root: Path) -> None:
    """A process that is killed before its first change, its second, and so on."""
    whole = empty_size(root)
    reached = 0
    for last in range(1, 2000):
        _, status = os.waitpid(forked(lambda last=last: _session_until(root, last)), 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in {0, -signal.SIGKILL}
        if last % 8 == 0 or code == 0:
            assert_sound(root, whole)
        if code == 0:
            reached = last
            break
    assert reached > 100, reached


def _session_until(root: Path, last: int) -> None:
    left = last

    def count(_: object, event: str, function: object) -> None:
        nonlocal left
        if event == "c_call" and getattr(function, "__name__", "") in CHANGES:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    with Store.open(root) as store:
        build(store, "app")
        images_of(store).remove("app")
        images_of(store).prune(EVERYTHING)


def side_by_side(root: Path) -> None:
    """Eight processes build for some seconds, one removes all it can, and some are killed."""
    whole = empty_size(root)
    chance = random.Random(2)  # noqa: S311 - a choice of work
    end = time.monotonic() + 8
    collector = forked(lambda: _collect_until(root, end))
    builders = [forked(lambda seed=seed: _build_until(root, seed, end)) for seed in range(8)]
    while time.monotonic() < end:
        time.sleep(0.1)
        victim = builders.pop(0)
        os.kill(victim, signal.SIGKILL)
        _, status = os.waitpid(victim, 0)
        assert os.waitstatus_to_exitcode(status) in {0, -signal.SIGKILL}
        seed = chance.randrange(1000)
        builders.append(forked(lambda seed=seed: _build_until(root, seed, end)))
    for pid in (collector, *builders):
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    assert_sound(root, whole)


def _build_until(root: Path, seed: int, end: float) -> None:
    while time.monotonic() < end:
        seed += 1
        session(root, seed)


def _collect_until(root: Path, end: float) -> None:
    longest, rounds = 0.0, 0
    while time.monotonic() < end:
        begun = time.monotonic()
        with Store.open(root) as store:
            images_of(store).prune(EVERYTHING)
        longest = max(longest, time.monotonic() - begun)
        rounds += 1
    # nobody keeps the collector from its work
    assert rounds > 5
    assert longest < 5


if __name__ == "__main__":
    {work.__name__: work for work in (killed_at_random, killed_at_each_point, side_by_side)}[
        sys.argv[1]
    ](Path(sys.argv[2]))
