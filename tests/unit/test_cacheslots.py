"""Who uses a cache with whom, in threads and in processes."""

import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from pybuild.backend import Sharing
from pybuild.cacheslots import CacheSlots
from pybuild.errors import BuildCancelled

SHARED, PRIVATE, LOCKED = Sharing.SHARED, Sharing.PRIVATE, Sharing.LOCKED


def give_up() -> None:
    raise BuildCancelled("it was taken")


def one(slots: CacheSlots, stack: ExitStack, sharing: Sharing, ident: str = "i") -> int:
    """The slot that a step gets at once."""
    return stack.enter_context(slots.taken({ident: sharing}, give_up))[ident]


def test_only_shared_ones_are_used_together(tmp_path: Path) -> None:
    slots = CacheSlots(tmp_path)
    with ExitStack() as stack:
        assert [one(slots, stack, SHARED) for _ in range(3)] == [0, 0, 0]
        assert one(slots, stack, PRIVATE) == 1
        assert one(slots, stack, SHARED) == 0
        assert one(slots, stack, PRIVATE) == 2
        assert one(slots, stack, LOCKED, "other") == 0
        with pytest.raises(BuildCancelled):
            one(slots, stack, LOCKED)
    with ExitStack() as stack:
        assert one(slots, stack, LOCKED) == 0
        assert one(slots, stack, SHARED) == 1
        with pytest.raises(BuildCancelled):
            one(slots, stack, LOCKED)
        assert one(slots, stack, PRIVATE) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_locked_one_is_got_when_it_is_free(tmp_path: Path) -> None:
    slots = CacheSlots(tmp_path)
    waiting, got = threading.Event(), threading.Event()

    def wait_for_it() -> None:
        with slots.taken({"i": LOCKED}, waiting.set) as taken:
            assert taken == {"i": 0}
            got.set()

    thread = threading.Thread(target=wait_for_it)
    with slots.taken({"i": LOCKED}, give_up):
        thread.start()
        assert waiting.wait(20)
        assert not got.is_set()
    thread.join()
    assert got.is_set()


def test_several_are_never_waited_for_in_turns(tmp_path: Path) -> None:
    slots = CacheSlots(tmp_path)

    def take(names: list[str]) -> None:
        for _ in range(50):
            with slots.taken(dict.fromkeys(names, LOCKED), lambda: None):
                pass

    threads = [threading.Thread(target=take, args=(names,)) for names in (["a", "b"], ["b", "a"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_any_id_is_a_name_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    folder.mkdir()
    with CacheSlots(folder).taken({"../../x": LOCKED, "/": SHARED, "\udcff\0": LOCKED}, give_up):
        assert len(list(folder.iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["locks"]


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "locks", tmp_path / "outside"
    folder.mkdir()
    with CacheSlots(folder).taken({"i": LOCKED}, give_up):
        (name,) = [path.name for path in folder.iterdir()]
    (folder / name).symlink_to(outside)
    with pytest.raises(OSError), CacheSlots(folder).taken({"i": LOCKED}, give_up):
        pass
    assert not outside.exists()


_HOLDER = """
import sys
from pathlib import Path
from pybuild.backend import Sharing
from pybuild.cacheslots import CacheSlots
with CacheSlots(Path(sys.argv[1])).taken({"i": Sharing.LOCKED}, lambda: None):
    print("taken", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    slots = CacheSlots(tmp_path)
    command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        with pytest.raises(BuildCancelled), slots.taken({"i": LOCKED}, give_up):
            pass
        process.kill()
    with slots.taken({"i": LOCKED}, give_up) as taken:
        assert taken == {"i": 0}
