"""The backend suite's part on layers made by put: what is in them, and how they live."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import BinaryIO

import pytest

from pybuild.backend import ROLayer
from pybuild.errors import BuildCancelled, PybuildError
from pybuild.files.trees import NewEntry, walk
from pybuild.oci.compression import Compression, Decompressed, Packing
from pybuild.oci.descriptor import digest_of, is_digest
from pybuild.oci.layerindex import Entry, Kind
from pybuild.testkit.suite_base import SuiteBase
from pybuild.testkit.validate import validate
from pybuild.testkit.workbench import (
    Workbench,
    content,
    file,
    folder,
    hard_link,
    symlink,
)

_MISUSE = (RuntimeError, PybuildError)
_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""A security.capability of version 2: cap_net_bind_service, permitted and effective."""


class LayerSuite(SuiteBase):
    """What is put comes back, and layers are independent of each other."""

    @pytest.mark.parametrize(
        "new",
        [
            file(b"x", b"text", 0o644, mtime=1_000_000_000),
            file(b"x", b""),
            file(b"x", b"#!", 0o755, uid=1000, gid=1001),
            file(b"x", b"#!", 0o4755),
            file(b"x", b"#!", 0o2755, gid=7),
            file(b"x", b"", 0o000, uid=2_000_000_000),
            file(b"x", b"#!", 0o755, xattrs=(("security.capability", _CAPABILITY),)),
            folder(b"x", 0o700, uid=3, gid=4, mtime=5),
            folder(b"x", 0o1777),
            symlink(b"x", b"/etc/passwd"),
            symlink(b"x", b"../../nowhere"),
            file(b"na\xef\xbfme \xff\xfe\n", b"odd"),
            file("grün".encode(), b"utf-8"),
            file(b"l" * 255, b"long"),
        ],
        ids=lambda new: f"{new.entry.kind.value}-{new.entry.mode:o}-{new.entry.path[:4]!r}",
    )
    def test_an_entry_comes_back_as_it_was_put(self, bench: Workbench, new: NewEntry) -> None:
        layer = bench.put(bench.scratch(), new)
        found = layer.tree().get(new.entry.path)
        assert found is not None
        assert found.digest is None or is_digest(found.digest)
        assert replace(found, digest=new.entry.digest) == new.entry
        if new.content is not None:
            with new.content() as stream:
                assert content(layer, new.entry.path) == stream.read()

    def test_the_contents_of_layers_are_told_for_each(self, bench: Workbench) -> None:
        first = bench.put(bench.scratch(), file(b"a", b"one"))
        second = bench.put(first, file(b"b", b"two"), file(b"a", b"other"))
        paths = [None if index is None else list(index.paths) for index in second.contents()]
        # a backend may know nothing of them
        assert paths in ([[b"a"], [b"a", b"b"]], [None, None])

    def test_hard_links_are_one_file(self, bench: Workbench) -> None:
        first = file(b"b", b"shared", 0o640)
        layer = bench.put(bench.scratch(), first, hard_link(b"c", first), hard_link(b"a", first))
        tree = layer.tree()
        entries = [tree.get(name) for name in (b"a", b"b", b"c")]
        assert [content(layer, name) for name in (b"a", b"b", b"c")] == [b"shared"] * 3
        assert {entry.link or entry.path for entry in entries if entry} == {b"a"}
        validate(bench.backend, bench.create(layer, "localhost/links:1"))

    def test_deep_folders_and_long_paths(self, bench: Workbench) -> None:
        paths = [b"/".join([b"folder-with-a-name"] * depth) for depth in range(1, 40)]
        layer = bench.put(bench.scratch(), *map(folder, paths), file(paths[-1] + b"/leaf", b"deep"))
        assert content(layer, paths[-1] + b"/leaf") == b"deep"
        validate(bench.backend, bench.create(layer, "localhost/deep:1"))

    def test_many_entries_in_one_layer(self, bench: Workbench) -> None:
        entries = [folder(b"many")]
        entries += [file(b"many/%d" % number, b"%d" % number) for number in range(2000)]
        layer = bench.put(bench.scratch(), *entries)
        assert len(layer.tree().children(b"many")) == 2000
        assert content(layer, b"many/1234") == b"1234"

    def test_a_large_file_comes_back_whole(self, bench: Workbench) -> None:
        data = random.Random(1).randbytes(9_000_001)  # noqa: S311  (not for secrets)
        layer = bench.put(bench.scratch(), file(b"large", data))
        assert content(layer, b"large") == data
        validate(bench.backend, bench.create(layer, "localhost/large:1"))

    def test_putting_nothing_makes_no_layer(self, bench: Workbench) -> None:
        below = bench.put(bench.scratch(), file(b"a", b"x"))
        same = bench.put(below)
        assert same.diff is None
        assert same.diffs == below.diffs
        assert content(same, b"a") == b"x"

    def test_a_commit_without_a_step_makes_no_layer(self, bench: Workbench) -> None:
        with bench.scratch().begin(runs=False) as rw:
            layer = bench.hold(rw.commit(None, bench.activity))
        assert layer.diff is None
        assert layer.diffs == ()

    def test_diffs_grow_by_one_for_each_layer(self, bench: Workbench) -> None:
        base = bench.base()
        one = bench.put(base, file(b"one", b"1"))
        two = bench.put(one, file(b"two", b"2"))
        assert one.diff is not None
        assert two.diff is not None
        assert two.diffs == (*base.diffs, one.diff, two.diff)
        assert is_digest(two.diff.diff_id)
        assert two.diff.diff_id != two.diff.blob.digest

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ((file(b"x", b"old"),), file(b"x", b"new", 0o600)),
            ((file(b"x", b"old"),), folder(b"x")),
            ((folder(b"x"), file(b"x/in", b"old")), file(b"x", b"new")),
            ((symlink(b"x", b"etc"), folder(b"etc")), file(b"x", b"new")),
            ((symlink(b"x", b"etc"), folder(b"etc"), file(b"etc/f", b"")), folder(b"x")),
            ((file(b"x", b"old"),), symlink(b"x", b"y")),
        ],
        ids=[
            "content",
            "file-by-folder",
            "folder-by-file",
            "link-by-file",
            "link-by-folder",
            "file-by-link",
        ],
    )
    def test_an_entry_replaces_what_was_there(
        self, bench: Workbench, old: tuple[NewEntry, ...], new: NewEntry
    ) -> None:
        below = bench.put(bench.scratch(), *old)
        layer = bench.put(below, new)
        found = layer.tree().get(b"x")
        assert found is not None
        assert (found.kind, found.mode, found.link) == (
            new.entry.kind,
            new.entry.mode,
            new.entry.link,
        )
        assert list(layer.tree().children(b"x")) == []
        validate(bench.backend, bench.create(layer, "localhost/replaced:1"))

    def test_a_folder_put_again_keeps_its_files(self, bench: Workbench) -> None:
        below = bench.put(bench.scratch(), folder(b"d"), file(b"d/a", b"kept"))
        layer = bench.put(below, folder(b"d", 0o700), file(b"d/b", b"new"))
        assert list(layer.tree().children(b"d")) == [b"a", b"b"]
        assert content(layer, b"d/a") == b"kept"

    def test_equal_entries_give_equal_layers_in_any_order(self, bench: Workbench) -> None:
        entries = [
            folder(b"d"),
            file(b"d/b", b"2", mtime=9),
            file(b"d/a", b"1"),
            symlink(b"l", b"d"),
        ]
        one = bench.put(bench.scratch(), *entries)
        other = bench.put(bench.scratch(), *reversed(entries[1:]), entries[0])
        assert one.diff is not None
        assert one.diff == other.diff

    def test_layers_on_one_parent_are_independent(self, bench: Workbench) -> None:
        parent = bench.put(bench.scratch(), folder(b"d"))
        one = bench.put(parent, file(b"d/one", b"1"))
        two = bench.put(parent, file(b"d/two", b"2"))
        assert list(one.tree().children(b"d")) == [b"one"]
        assert list(two.tree().children(b"d")) == [b"two"]
        assert list(parent.tree().children(b"d")) == []

    def test_layers_may_be_made_in_parallel(self, bench: Workbench) -> None:
        parent = bench.put(bench.scratch(), folder(b"d"))

        def make(number: int) -> ROLayer:
            return bench.put(parent, file(b"d/%d" % number, b"%d" % number * 1000))

        with ThreadPoolExecutor(4) as pool:
            layers = list(pool.map(make, range(12)))
        for number, layer in enumerate(layers):
            assert list(layer.tree().children(b"d")) == [b"%d" % number]
        assert len({layer.diff.diff_id for layer in layers if layer.diff}) == 12

    def test_equal_layers_may_be_made_at_once(self, bench: Workbench) -> None:
        parent = bench.put(bench.scratch(), file(b"p", b""))

        def make(_: int) -> ROLayer:
            return bench.put(parent, file(b"same", b"same"))

        with ThreadPoolExecutor(4) as pool:
            layers = list(pool.map(make, range(8)))
        assert len({layer.diff.diff_id for layer in layers if layer.diff}) == 1
        assert all(content(layer, b"same") == b"same" for layer in layers)

    def test_a_layer_released_without_commit_leaves_nothing(self, bench: Workbench) -> None:
        parent = bench.put(bench.scratch(), file(b"a", b"1"))
        with parent.begin(runs=False) as rw:
            rw.put([file(b"gone", b"x")], bench.activity)
        names = [entry.path for entry in walk(parent.tree(), b"") if entry.path]
        assert names == [b"a"]
        assert parent.diffs == (parent.diff,)

    def test_a_layer_may_be_released_twice(self, bench: Workbench) -> None:
        layer = bench.put(bench.scratch(), file(b"a", b"1"))
        rw = layer.begin(runs=False)
        for released in (rw, rw, layer, layer):
            released.release()

    def test_a_released_layer_cant_be_begun_on(self, bench: Workbench) -> None:
        layer = bench.put(bench.scratch(), file(b"a", b"1"))
        layer.release()
        with pytest.raises(_MISUSE):
            layer.begin(runs=False)

    def test_a_layer_outlives_its_released_parent(self, bench: Workbench) -> None:
        parent = bench.put(bench.scratch(), file(b"a", b"1"))
        layer = bench.put(parent, file(b"b", b"2"))
        parent.release()
        above = bench.put(layer, file(b"c", b"3"))
        assert [content(above, name) for name in (b"a", b"b", b"c")] == [b"1", b"2", b"3"]

    def test_a_committed_layer_cant_be_changed(self, bench: Workbench) -> None:
        with bench.scratch().begin(runs=False) as rw:
            rw.put([file(b"a", b"1")], bench.activity)
            layer = bench.hold(rw.commit(None, bench.activity))
            with pytest.raises(_MISUSE):
                rw.put([file(b"b", b"2")], bench.activity)
        assert list(layer.tree().children(b"")) == [b"a"]

    def test_the_tree_of_a_read_write_layer_is_its_parents(self, bench: Workbench) -> None:
        parent = bench.put(bench.scratch(), file(b"a", b"1"))
        with parent.begin(runs=False) as rw:
            assert list(rw.tree().children(b"")) == [b"a"]

    def test_a_file_that_cant_be_read_fails_the_put_alone(self, bench: Workbench) -> None:
        def broken() -> BinaryIO:
            raise PybuildError("it went away")

        parent = bench.put(bench.scratch(), file(b"a", b"1"))
        bad = NewEntry(Entry(b"bad", Kind.FILE, size=3), broken)
        with pytest.raises(PybuildError, match="it went away"):
            bench.put(parent, file(b"aa", b"x"), bad)
        assert content(bench.put(parent, file(b"b", b"2")), b"b") == b"2"

    @pytest.mark.parametrize("size", [2, 4])
    def test_a_file_of_another_size_is_refused(self, bench: Workbench, size: int) -> None:
        wrong = NewEntry(Entry(b"wrong", Kind.FILE, size=size), partial(BytesIO, b"abc"))
        with pytest.raises(PybuildError):
            bench.put(bench.scratch(), wrong)

    def test_cancel_stops_a_put(self, bench: Workbench) -> None:
        scratch = bench.scratch()
        bench.activity.cancel()
        with pytest.raises(BuildCancelled):
            bench.put(scratch, file(b"a", b"1"))

    def test_no_time_is_later_than_the_newest_allowed(self, bench: Workbench) -> None:
        entries = (
            folder(b"d", mtime=50),
            file(b"d/old", b"", mtime=5),
            file(b"new", b"", mtime=99),
        )
        layer = bench.put(bench.scratch(), *entries, newest=7)
        times = {entry.path: entry.mtime for entry in walk(layer.tree(), b"") if entry.path}
        assert times == {b"d": 7, b"d/old": 5, b"new": 7}

    @pytest.mark.parametrize(
        "wanted",
        [
            Packing(Compression.NONE),
            Packing(Compression.ZSTD),
            Packing(Compression.GZIP),
            Packing(Compression.GZIP, 9),
            Packing(Compression.ZSTD, 19),
        ],
    )
    def test_a_layer_is_recompressed(self, bench: Workbench, wanted: Packing) -> None:
        layer = bench.put(bench.scratch(), file(b"a", b"text" * 1000))
        made = bench.backend.recompress(layer.diffs[0], wanted, bench.activity)
        assert made.diff_id == layer.diffs[0].diff_id
        assert made.blob.media_type == wanted.compression.media_type
        with closing(bench.backend.open_blob(made.blob.digest)) as blob:
            data = blob.read()
        assert (digest_of(data), len(data)) == (made.blob.digest, made.blob.size)
        with Decompressed(BytesIO(data)) as plain:
            assert digest_of(b"".join(iter(lambda: plain.read(1 << 20), b""))) == made.diff_id
