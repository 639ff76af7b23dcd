"""The embedded backend's store: blobs, chains, steps, folders, sessions, and who may open it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pybuild.errors import (
    BackendFailed,
    BackendUnavailable,
    BuildCancelled,
    ImageNotFound,
    InvalidImage,
)
from pybuild.oci.descriptor import OCI_LAYER_GZIP, Descriptor, LayerDiff, chain_id, digest_of
from pybuild.testkit.workbench import RecordingActivity
from pybuild_embedded import folders, rootfolder
from pybuild_embedded.store import Store
from quickness import seconds
from storing import FLAVOUR, crash, put_blob, put_folder, put_layer, put_step, remove_trees

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inherent: runs on Linux only")

_KILLED = """
import os, signal, sys
from pathlib import Path
from pybuild_embedded.store import Store
store = Store.open(Path(sys.argv[1]))
writer = store.blob_writer()
writer.write(b"half")
folder = store.new_folder()
(folder.fs / "file").write_bytes(b"half")
store.has_blob("sha256:" + "0" * 64)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestBlobs:
    def test_what_was_committed_is_there_in_the_next_session(self, root: Path) -> None:
        with Store.open(root) as store:
            digest = put_blob(store, b"content")
        with Store.open(root) as store:
            assert store.has_blob(digest)
            with store.open_blob(digest) as blob:
                assert blob.read() == b"content"
            assert store.blob_path(digest).read_bytes() == b"content"
            assert store.blob_path(digest).stat().st_mode & 0o777 == 0o600

    def test_what_was_not_committed_leaves_nothing(self, root: Path) -> None:
        with Store.open(root) as store:
            with store.blob_writer() as writer:
                writer.write(b"content")
            assert not store.has_blob(digest_of(b"content"))
            assert names(store.session.ingest) == []

    @pytest.mark.parametrize("wrong", ["digest", "size"])
    def test_other_bytes_than_named_are_refused(self, root: Path, wrong: str) -> None:
        digest = digest_of(b"other" if wrong == "digest" else b"content")
        with Store.open(root) as store:
            with store.blob_writer() as writer:
                writer.write(b"content")
                with pytest.raises(InvalidImage, match="expected"):
                    writer.commit(digest, 8 if wrong == "size" else 7)
            assert not store.has_blob(digest)

    def test_a_restarted_writer_forgets_what_it_got(self, root: Path) -> None:
        with Store.open(root) as store, store.blob_writer() as writer:
            writer.write(b"wrong bytes")
            writer.restart()
            writer.write(b"right")
            writer.commit(digest_of(b"right"), 5)
            with store.open_blob(digest_of(b"right")) as blob:
                assert blob.read() == b"right"

    def test_a_file_of_the_session_is_adopted(self, root: Path) -> None:
        with Store.open(root) as store:
            digest = digest_of(b"content")
            for _ in range(2):  # the second time it is here already
                path = store.new_file()
                path.write_bytes(b"content")
                store.adopt_blob(path, digest, 7)
                assert not path.exists()
            assert store.blob_path(digest).read_bytes() == b"content"

    def test_an_adopted_file_of_another_size_is_refused(self, root: Path) -> None:
        with Store.open(root) as store:
            path = store.new_file()
            path.write_bytes(b"content")
            with pytest.raises(BackendFailed, match="7 bytes instead of 8"):
                store.adopt_blob(path, digest_of(b"content"), 8)
            assert not store.has_blob(digest_of(b"content"))

    def test_a_truncated_blob_is_replaced(self, root: Path) -> None:
        with Store.open(root) as store:
            digest = put_blob(store, b"content")
            os.truncate(store.blob_path(digest), 3)
            put_blob(store, b"content")
            assert store.blob_path(digest).read_bytes() == b"content"

    @pytest.mark.parametrize("digest", ["sha256:../../x", "", "md5:00", "sha256:" + "A" * 64])
    def test_no_path_is_made_of_what_is_no_digest(self, root: Path, digest: str) -> None:
        with Store.open(root) as store:
            for method in (store.has_blob, store.open_blob, store.blob_path):
                with pytest.raises(InvalidImage, match="is no digest"):
                    method(digest)

    def test_a_missing_blob_is_not_found(self, root: Path) -> None:
        with Store.open(root) as store, pytest.raises(ImageNotFound):
            store.open_blob(digest_of(b"never"))


class TestChains:
    def test_every_beginning_of_a_chain_is_known(self, root: Path) -> None:
        with Store.open(root) as store:
            layers = put_step(store, "b", put_step(store, "a"))
            chain = store.record_layers(layers)
            assert chain == chain_id(tuple(layer.diff_id for layer in layers))
        with Store.open(root) as store:
            assert store.layers(chain) == layers
            assert store.layers(layers[0].diff_id) == layers[:1]
            assert store.layers("") == ()
            assert store.layers(digest_of(b"another")) is None
            assert store.record_layers(()) == ""

    def test_layers_may_be_recorded_before_their_blobs_are_here(self, root: Path) -> None:
        with Store.open(root) as store:
            layer = _absent_layer(0)
            chain = store.record_layers([layer])
            store.record_step("key", chain, own=False)
            assert store.step("key") is None
            assert store.layers(chain) == (layer,)

    def test_a_known_chain_keeps_its_blob_while_that_is_here(self, root: Path) -> None:
        with Store.open(root) as store:
            first = put_layer(store, b"content")
        other = LayerDiff(first.diff_id, Descriptor(OCI_LAYER_GZIP, digest_of(b"x"), 1))
        with Store.open(root) as store:
            chain = store.record_layers([first])
            put_blob(store, b"x")
            assert store.record_layers([other]) == chain
        with Store.open(root) as store:
            assert store.layers(chain) == (first,)
            assert store.has_blob(other.blob.digest)
            store.blob_path(first.blob.digest).unlink()
        with Store.open(root) as store:
            store.record_layers([other])
        with Store.open(root) as store:
            assert store.layers(chain) == (other,)

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE chains SET diff_id='sha256:" + "0" * 64 + "'",
            "UPDATE chains SET parent='x' WHERE parent<>''",
            "UPDATE chains SET media_type='text/plain'",
            "UPDATE chains SET digest='../../x'",
            "UPDATE chains SET size=size+1",
            "UPDATE steps SET chain='x'",
            "DELETE FROM chains WHERE parent=''",
            "UPDATE chains SET diff_id=CAST(x'ff' AS TEXT)",
            "UPDATE steps SET chain=CAST(x'ff' AS TEXT)",
        ],
    )
    def test_a_row_that_says_something_wrong_is_a_miss(self, root: Path, change: str) -> None:
        with Store.open(root) as store:
            put_step(store, "b", put_step(store, "a"))
            with store.database.writing() as connection:
                connection.execute(change)
        with Store.open(root) as store:
            assert store.step("b") is None

    def test_a_thousand_layers_one_by_one_cost_as_much_each(self, root: Path) -> None:
        layers = tuple(map(_absent_layer, range(1000)))
        with Store.open(root) as store:
            times = []
            for count in range(1, 1001):
                begun = time.thread_time()
                store.record_layers(layers[:count])
                times.append(time.thread_time() - begun)
            assert min(times[-100:]) < 10 * min(times[:100])


class TestSteps:
    def test_a_step_is_found_with_all_its_layers(self, root: Path) -> None:
        with Store.open(root) as store:
            layers = put_step(store, "key", put_step(store, "base"))
            store.record_step("nothing changed", store.record_layers(layers), own=False)
            store.record_step("scratch", "", own=False)
        with Store.open(root) as store:
            step = store.step("key")
            assert step is not None
            assert (step.layers, step.own) == (layers, True)
            other = store.step("nothing changed")
            assert other is not None
            assert (other.layers, other.own) == (layers, False)
            scratch = store.step("scratch")
            assert scratch is not None
            assert scratch.layers == ()
            assert store.step("unknown") is None

    @pytest.mark.parametrize("position", [0, 1])
    def test_a_step_without_a_blob_is_a_miss(self, root: Path, position: int) -> None:
        with Store.open(root) as store:
            layers = put_step(store, "key", put_step(store, "base"))
        with Store.open(root) as store:
            store.blob_path(layers[position].blob.digest).unlink()
            assert store.step("key") is None

    def test_the_latest_result_of_a_step_counts(self, root: Path) -> None:
        with Store.open(root) as store:
            put_step(store, "key")
            layer = put_layer(store, b"other")
            store.record_step("key", store.record_layers([layer]), own=True)
            step = store.step("key")
            assert step is not None
            assert step.layers == (layer,)

    def test_looking_up_is_quick(self, root: Path) -> None:
        with Store.open(root) as store:
            put_step(store, "key")
            assert seconds(lambda: store.step("key"), 50) < 0.0002

    def test_chains_that_are_not_remembered_any_more_are_found_again(self, root: Path) -> None:
        with Store.open(root) as store:
            layers = put_step(store, "b", put_step(store, "a"))
            chain = store.record_layers(layers)
            for number in range(300):
                store.record_layers([_absent_layer(number)])
            assert store.layers(chain) == layers
            found = store.step("b")
            assert found is not None
            assert (found.chain, found.layers) == (chain, layers)
            for number in range(300):
                store.record_layers([_absent_layer(number)])
            above = store.record_layers((*layers, _absent_layer(0)))
        with Store.open(root) as store:
            assert store.layers(above) == (*layers, _absent_layer(0))
            assert store.step("a") is not None


class TestFolders:
    def test_the_folders_that_overlayfs_worked_in_are_those_of_this_session(
        self, root: Path
    ) -> None:
        with Store.open(root) as store:
            layers = put_step(store, "b", put_step(store, "a"))
            used = put_folder(store, layers[:1], b"a")
            put_folder(store, layers, b"b")
            (used.work / "0").mkdir()
            assert store.worked_in() == [used.work]
            used.work.joinpath("0").rmdir()
            used.work.rmdir()
            assert store.worked_in() == []
        with Store.open(root) as store:
            used.work.joinpath("0").mkdir(parents=True)
            assert store.worked_in() == []
            assert store.folder(layers[0].diff_id, FLAVOUR) == used
            assert store.worked_in() == [used.work]

    def test_what_overlayfs_left_for_a_session_that_died_goes_with_it(self, root: Path) -> None:
        store = Store.open(root)
        layers = put_step(store, "a")
        used = put_folder(store, layers, b"a")
        (used.work / "0").mkdir()
        crash(store)
        with Store.open(root) as store:
            assert not used.work.exists()
            assert store.folder(store.record_layers(layers), FLAVOUR) == used
            store.empty_trash(remove_trees)
            assert list((root / "trash").iterdir()) == []

    def test_a_settled_folder_is_found_by_chain_and_flavour(self, root: Path) -> None:
        with Store.open(root) as store:
            layers = put_step(store, "key")
            folder = put_folder(store, layers, b"key")
            chain = store.record_layers(layers)
        with Store.open(root) as store:
            assert store.folder(chain, FLAVOUR) == folder
            assert (folder.fs / "file").read_bytes() == b"key"
            assert folder.fs.stat().st_mode & 0o777 == 0o755
            assert folder.path.stat().st_mode & 0o777 == 0o700
            assert folder.work.is_dir()
            assert store.folder(chain, "range") is None
            assert store.folder(digest_of(b"another"), FLAVOUR) is None

    def test_the_first_to_settle_wins(self, root: Path) -> None:
        with Store.open(root) as one, Store.open(root) as other:
            chain = one.record_layers(put_step(one, "key"))
            mine, late = one.new_folder(), other.new_folder()
            assert one.settle(mine, chain, FLAVOUR) == mine
            assert other.settle(late, chain, FLAVOUR) == mine
            assert late.path.exists()  # something may run on it
            other.discard_unsettled()
            assert not late.path.exists()
            other.empty_trash(remove_trees)
        assert names(root / "trash") == []
        assert names(root / "layers") == [mine.ident]

    def test_a_folder_that_is_not_settled_ends_with_the_session(self, root: Path) -> None:
        with Store.open(root) as store:
            folder = store.new_folder()
            store.discard(store.new_folder())
            assert names(root / "layers") == [folder.ident]
        assert names(root / "layers") == []
        with Store.open(root) as store:
            store.empty_trash(remove_trees)
        assert names(root / "trash") == []

    def test_a_row_without_its_folder_is_a_miss(self, root: Path) -> None:
        with Store.open(root) as store:
            layers = put_step(store, "key")
            remove_trees([put_folder(store, layers, b"key").path])
        with Store.open(root) as store:
            chain = store.record_layers(layers)
            assert store.folder(chain, FLAVOUR) is None
            again = put_folder(store, layers, b"key")
            assert store.folder(chain, FLAVOUR) == again

    def test_the_last_chain_with_a_folder_is_found(self, root: Path) -> None:
        with Store.open(root) as store:
            layers: tuple[LayerDiff, ...] = ()
            chains = []
            for name in ("a", "b", "c"):
                layers = put_step(store, name, layers)
                chains.append(store.record_layers(layers))
            folder = put_folder(store, layers[:2], b"b")
            put_folder(store, layers, b"c", "other flavour")
        with Store.open(root) as store:
            assert store.last_folder(chains, FLAVOUR) == (1, folder)
            assert store.last_folder(chains[:1], FLAVOUR) is None

    def test_after_a_power_failure_only_synced_folders_count(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Store.open(root) as store:
            synced = store.record_layers(layers := put_step(store, "synced"))
            put_folder(store, layers, b"synced")
        store = Store.open(root)
        lost = store.record_layers(layers := put_step(store, "lost"))
        folder = put_folder(store, layers, b"lost")
        with Store.open(root) as same_boot:
            assert same_boot.folder(lost, FLAVOUR) == folder
            crash(same_boot)
        crash(store)
        with monkeypatch.context() as patch:
            patch.setattr(folders, "boot_id", lambda: "another boot")
            with Store.open(root) as later:
                assert later.folder(lost, FLAVOUR) is None
                assert not folder.path.exists()
                assert later.folder(synced, FLAVOUR) is not None

    def test_a_cache_mount_is_shared_and_its_id_is_no_path(self, root: Path) -> None:
        with Store.open(root) as one, Store.open(root) as other:
            folder = one.cache_folder("../../etc")
            assert folder.path.parent == root / "cachemounts"
            (folder.fs / "file").write_bytes(b"kept")
            assert other.cache_folder("../../etc") == folder
            assert other.cache_folder("\udcff\n") != folder
        with Store.open(root) as store:
            assert (store.cache_folder("../../etc").fs / "file").read_bytes() == b"kept"


class TestSessions:
    def test_nothing_of_a_session_is_left_after_it(self, root: Path) -> None:
        with Store.open(root) as store:
            store.new_file().write_bytes(b"unfinished")
            put_step(store, "key")
            store.close()
            store.close()
        for folder in ("sessions", "ingest", "locks"):
            assert names(root / folder) == []
        assert _pins(root) == []

    def test_what_a_killed_session_left_is_removed_by_the_next(self, root: Path) -> None:
        command = [sys.executable, "-c", _KILLED, root]
        assert subprocess.run(command, check=False).returncode == -9
        assert len(names(root / "sessions")) == 1
        assert len(names(root / "layers")) == 1
        with Store.open(root) as store:
            assert names(root / "sessions") == [store.session.ident]
            assert names(root / "layers") == []
            assert names(root / "ingest") == []
            assert _pins(root) == []

    def test_a_live_session_is_left_alone(self, root: Path) -> None:
        with Store.open(root) as one:
            folder = one.new_folder()
            file = one.new_file()
            file.touch()
            with Store.open(root):
                pass
            assert folder.path.exists()
            assert file.exists()

    def test_threads_share_a_session(self, root: Path) -> None:
        def work(number: int) -> bool:
            layers = put_step(store, str(number % 8))
            return store.step(str(number % 8)) is not None and len(layers) == 1

        with Store.open(root) as store, ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(64)))


class TestSingleFlight:
    def test_one_at_a_time_does_the_work(self, root: Path) -> None:
        inside, most, lock = 0, 0, threading.Lock()

        def work(store: Store) -> None:
            nonlocal inside, most
            with store.single_flight("../work", RecordingActivity()):
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.002)
                with lock:
                    inside -= 1

        with Store.open(root) as one, Store.open(root) as other, ThreadPoolExecutor(8) as pool:
            list(pool.map(work, [one, other] * 10))
            assert names(root / "locks") == []
        assert most == 1

    def test_other_work_is_not_waited_for(self, root: Path) -> None:
        activity = RecordingActivity()
        with (
            Store.open(root) as store,
            store.single_flight("a", activity),
            store.single_flight("b", activity),
        ):
            assert len(names(root / "locks")) == 2

    def test_waiting_ends_when_the_build_is_cancelled(self, root: Path) -> None:
        activity = RecordingActivity()
        timer = threading.Timer(0.02, activity.cancel)
        with Store.open(root) as store, store.single_flight("work", RecordingActivity()):
            timer.start()
            with pytest.raises(BuildCancelled), store.single_flight("work", activity):
                pytest.fail("two at once")
        timer.join()

    def test_the_lock_of_a_killed_process_is_free(self, root: Path) -> None:
        script = (
            "import os, sys\nfrom pathlib import Path\n"
            "from pybuild.testkit.workbench import RecordingActivity\n"
            "from pybuild_embedded.store import Store\n"
            "with Store.open(Path(sys.argv[1])).single_flight('work', RecordingActivity()):\n"
            "    os.kill(os.getpid(), 9)\n"
        )
        assert subprocess.run([sys.executable, "-c", script, root], check=False).returncode == -9
        assert len(names(root / "locks")) == 1
        with Store.open(root) as store, store.single_flight("work", RecordingActivity()):
            pass
        assert names(root / "locks") == []


class TestOpening:
    def test_all_is_private(self, root: Path) -> None:
        with Store.open(root) as store:
            put_step(store, "key")
            for path in (root, *root.iterdir()):
                assert path.stat().st_mode & 0o077 == 0, path

    def test_a_folder_that_others_may_enter_is_closed_to_them(self, root: Path) -> None:
        Store.open(root).close()
        root.chmod(0o755)
        Store.open(root).close()
        assert root.stat().st_mode & 0o777 == 0o700

    @pytest.mark.root
    def test_another_users_folder_is_refused(self, root: Path) -> None:
        Store.open(root).close()
        os.chown(root, 12345, -1)
        with pytest.raises(BackendUnavailable, match="belongs to another user") as caught:
            Store.open(root)
        assert caught.value.hint

    def test_a_folder_with_other_things_is_refused_and_untouched(self, root: Path) -> None:
        root.mkdir(mode=0o755)
        (root / "letter").touch()
        with pytest.raises(BackendUnavailable, match="neither empty nor a store"):
            Store.open(root)
        assert names(root) == ["letter"]
        assert root.stat().st_mode & 0o777 == 0o755

    def test_a_file_is_refused(self, root: Path) -> None:
        root.touch()
        with pytest.raises(BackendUnavailable):
            Store.open(root)

    @pytest.mark.parametrize("text", [b"pybuild store 2\n", b"pybuild store 0\n", b"\xff", b""])
    def test_another_format_is_refused_and_untouched(self, root: Path, text: bytes) -> None:
        with Store.open(root) as store:
            digest = put_blob(store, b"content")
        (root / "format").write_bytes(text)
        with pytest.raises(BackendUnavailable, match="another format") as caught:
            Store.open(root)
        assert caught.value.hint
        assert (root / "format").read_bytes() == text
        assert (root / "reserve").exists()
        assert (root / "blobs/sha256" / digest[7:9] / digest[7:]).exists()

    @pytest.mark.parametrize("rest", [(), ("lock",), ("lock", "format.new")])
    def test_a_store_that_was_only_begun_is_finished(
        self, root: Path, rest: tuple[str, ...]
    ) -> None:
        root.mkdir()
        for name in rest:
            (root / name).touch()
        with Store.open(root) as store:
            put_step(store, "key")
            assert store.step("key")

    def test_network_file_systems_are_told_by_the_table_of_mounts(self) -> None:
        table = (
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
            "40 22 0:45 / /home\\040x rw,nosuid shared:3 - nfs4 host:/home rw,addr=1.2.3.4\n"
        )
        assert rootfolder.network_type(os.makedev(0, 45), table) == "nfs4"
        assert rootfolder.network_type(os.makedev(8, 1), table) is None
        assert rootfolder.network_type(os.makedev(9, 9), table) is None

    def test_a_network_file_system_is_refused(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rootfolder, "network_type", lambda *_: "nfs4")
        with pytest.raises(BackendUnavailable, match=r"network file system \(nfs4\)"):
            Store.open(root)

    @pytest.mark.parametrize("content", [b"no database at all" * 1000, b"SQLite format 3\0"])
    def test_what_is_no_database_is_made_anew(self, root: Path, content: bytes) -> None:
        with Store.open(root) as store:
            put_step(store, "key")
        (root / "db.sqlite").write_bytes(content)
        with Store.open(root) as store:
            assert store.step("key") is None
            put_step(store, "key")
            assert store.step("key")
        assert "db.new" not in names(root)

    def test_a_damaged_database_is_left_to_those_who_have_it_open(self, root: Path) -> None:
        with Store.open(root) as store:
            put_step(store, "key")
        with Store.open(root) as store:
            store.database.close()
            (root / "db.sqlite").write_bytes(b"no database at all" * 1000)
            with pytest.raises(BackendUnavailable, match="damaged"):
                Store.open(root)
            crash(store)
        Store.open(root).close()

    def test_opening_and_closing_is_quick(self, root: Path) -> None:
        assert seconds(lambda: Store.open(root).close(), 20) < 0.006


def _absent_layer(number: int) -> LayerDiff:
    blob = Descriptor(OCI_LAYER_GZIP, digest_of(b"blob %d" % number), number + 1)
    return LayerDiff(digest_of(b"%d" % number), blob)


def _pins(root: Path) -> list[tuple[str, ...]]:
    connection = sqlite3.connect(root / "db.sqlite")
    try:
        return connection.execute("SELECT * FROM pins").fetchall()
    finally:
        connection.close()
