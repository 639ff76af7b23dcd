"""The backend suite's part on what comes from, and goes to, caches of other machines."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from io import BytesIO

import pytest

from pybuild.backend import Backend, CacheMount, Capability, ROLayer
from pybuild.cacheexchange import CacheExchange, ForeignStep
from pybuild.errors import ImageError, InvalidImage
from pybuild.files.mountsource import TOP
from pybuild.files.trees import MemoryTree, NewEntry
from pybuild.oci import http
from pybuild.oci.descriptor import OCI_LAYER_GZIP, Descriptor, LayerDiff, digest_of
from pybuild.oci.layerindex import Entry, Kind
from pybuild.oci.layertar import read_index
from pybuild.oci.layerwriter import write_layer
from pybuild.oci.reference import Reference
from pybuild.oci.sinks import OpenSink
from pybuild.testkit.suite_base import SuiteBase, needs
from pybuild.testkit.workbench import Workbench, content, file, folder

_MADE = datetime(2020, 2, 3, 4, 5, 6, 789, tzinfo=UTC)


@dataclass(slots=True)
class _Blobs:
    """Blobs in memory, and which of them were asked for."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    reference: Reference | None = None

    def fetch(
        self, blobs: Sequence[Descriptor], open_sink: OpenSink, activity: http.Activity
    ) -> None:
        for blob in blobs:
            activity.raise_if_cancelled()
            if blob.digest not in self.blobs:
                raise InvalidImage(f"there is no {blob.digest}")
            self.fetched.append(blob.digest)
            with open_sink(blob) as sink:
                sink.write(b"other bytes, that are taken back")
                sink.restart()
                sink.write(self.blobs[blob.digest])
                sink.commit()

    def layer(self, *entries: NewEntry) -> LayerDiff:
        """A new layer, of which only this knows."""
        parts: list[bytes] = []
        made = write_layer(entries, parts.append).diff
        self.blobs[made.blob.digest] = b"".join(parts)
        return made


class ExchangeSuite(SuiteBase):
    """Steps of other machines are taken over as if they had been done here."""

    @pytest.fixture
    def exchange(self, backend: Backend) -> CacheExchange:
        needs(backend, Capability.STEP_CACHE)
        found = backend.cache_exchange()
        if found is None:
            pytest.skip("inherent: the backend trades nothing with caches")
        return found

    @pytest.fixture
    def key(self) -> str:
        """A key that no other test has used, perhaps with the same store."""
        return secrets.token_hex(32)

    @pytest.fixture
    def elsewhere(self) -> _Blobs:
        return _Blobs()

    def test_a_foreign_step_is_found_as_if_it_had_been_done_here(
        self, bench: Workbench, exchange: CacheExchange, elsewhere: _Blobs, key: str
    ) -> None:
        base = bench.base()
        layer = elsewhere.layer(folder(b"new"), file(b"new/file", b"from elsewhere"))
        exchange.adopt(key, _step(base, layer), elsewhere, bench.activity, later=False)
        found = bench.backend.lookup(key)
        assert found is not None
        bench.hold(found)
        assert (found.diff, found.diffs, found.made) == (layer, (*base.diffs, layer), _MADE)
        assert content(found, b"new/file") == b"from elsewhere"
        assert elsewhere.fetched == [layer.blob.digest]
        with closing(bench.backend.open_blob(layer.blob.digest)) as stream:
            assert stream.read() == elsewhere.blobs[layer.blob.digest]
        above = bench.put(found, file(b"new/more", b"above"))
        assert content(above, b"new/more") == b"above"

    @pytest.mark.usefixtures("kernel")
    def test_a_process_runs_on_a_foreign_step(
        self, bench: Workbench, exchange: CacheExchange, elsewhere: _Blobs, key: str
    ) -> None:
        layer = elsewhere.layer(file(b"file", b"from elsewhere\n"))
        step = _step(bench.base(), layer)
        exchange.adopt(key, step, elsewhere, bench.activity, later=True)
        found = bench.backend.lookup(key)
        assert found is not None
        assert bench.run(bench.hold(found), "cat /file").out == "from elsewhere\n"

    def test_a_foreign_step_may_have_changed_nothing(
        self, bench: Workbench, exchange: CacheExchange, elsewhere: _Blobs, key: str
    ) -> None:
        base = bench.base()
        step = ForeignStep(base.diffs, len(base.diffs), own=False, made=_MADE)
        exchange.adopt(key, step, elsewhere, bench.activity, later=False)
        found = bench.backend.lookup(key)
        assert found is not None
        bench.hold(found)
        assert (found.diff, found.diffs) == (None, base.diffs)
        assert elsewhere.fetched == []

    def test_a_blob_that_is_here_isnt_fetched(
        self, bench: Workbench, exchange: CacheExchange, elsewhere: _Blobs, key: str
    ) -> None:
        here = bench.put(bench.scratch(), file(b"file", b"the same"))
        layer = elsewhere.layer(file(b"file", b"the same"))
        assert here.diff == layer
        step = _step(bench.scratch(), layer)
        exchange.adopt(key, step, elsewhere, bench.activity, later=False)
        found = bench.backend.lookup(key)
        assert found is not None
        assert bench.hold(found).diffs == (layer,)
        assert elsewhere.fetched == []

    def test_a_blob_that_holds_something_else_is_refused(
        self, bench: Workbench, exchange: CacheExchange, elsewhere: _Blobs, key: str
    ) -> None:
        said = elsewhere.layer(file(b"file", b"what is said"))
        real = elsewhere.layer(file(b"file", b"what it is"))
        lying = LayerDiff(said.diff_id, real.blob)
        with pytest.raises(ImageError):
            exchange.adopt(key, _step(bench.base(), lying), elsewhere, bench.activity, later=False)
        assert bench.backend.lookup(key) is None

    @pytest.mark.parametrize("data", [b"no archive", b""])
    def test_a_blob_that_is_no_layer_is_refused(
        self, bench: Workbench, exchange: CacheExchange, elsewhere: _Blobs, key: str, data: bytes
    ) -> None:
        real = elsewhere.layer(file(b"file", b"content"))
        blob = Descriptor(OCI_LAYER_GZIP, digest_of(data), len(data))
        elsewhere.blobs[blob.digest] = data
        layer = LayerDiff(real.diff_id, blob)
        with pytest.raises(ImageError):
            exchange.adopt(key, _step(bench.base(), layer), elsewhere, bench.activity, later=False)
        assert bench.backend.lookup(key) is None

    def test_a_blob_that_cant_be_had_is_no_step(
        self, bench: Workbench, exchange: CacheExchange, elsewhere: _Blobs, key: str
    ) -> None:
        layer = elsewhere.layer(file(b"file", key.encode()))
        elsewhere.blobs.clear()
        with pytest.raises(ImageError):
            exchange.adopt(key, _step(bench.base(), layer), elsewhere, bench.activity, later=False)
        assert bench.backend.lookup(key) is None

    def test_a_cache_mount_is_packed_as_it_was_left(
        self, bench: Workbench, running: None, exchange: CacheExchange
    ) -> None:
        del running
        needs(bench.backend, Capability.CACHE_MOUNT)
        mount = CacheMount("/cache", "exchanged", mode=0o750)
        assert exchange.pack_mount("exchanged", bench.activity) is None
        script = "mkdir /cache/sub && echo kept > /cache/sub/file"
        assert bench.run(bench.base(), script, [mount]).code == 0
        packed = exchange.pack_mount("exchanged", bench.activity)
        assert packed is not None
        assert packed == exchange.pack_mount("exchanged", bench.activity)
        with closing(bench.backend.open_blob(packed.blob.digest)) as stream:
            diff_id, index = read_index(BytesIO(stream.read()))
        assert diff_id == packed.diff_id
        top = index.get(TOP)
        assert top is not None
        assert (top.kind, top.mode) == (Kind.DIRECTORY, 0o750)
        assert [entry.path for entry in index] == [TOP, TOP + b"/sub", TOP + b"/sub/file"]

    def test_a_cache_mount_begins_with_what_another_machine_packed(
        self, bench: Workbench, running: None, exchange: CacheExchange
    ) -> None:
        del running, exchange
        needs(bench.backend, Capability.CACHE_MOUNT)
        text = b"from elsewhere\n"
        entries = [
            NewEntry(Entry(TOP, Kind.DIRECTORY, 0o755)),
            NewEntry(Entry(TOP + b"/file", Kind.FILE, size=len(text)), partial(BytesIO, text)),
        ]
        mount = CacheMount("/cache", "seeded", tree=MemoryTree(entries), path=TOP)
        ran = bench.run(bench.base(), "cat /cache/file && echo more > /cache/more", [mount])
        assert ran.out == "from elsewhere\n"
        again = CacheMount("/cache", "seeded")
        assert bench.run(bench.base(), "cat /cache/file /cache/more", [again]).out == (
            "from elsewhere\nmore\n"
        )


def _step(below: ROLayer, layer: LayerDiff) -> ForeignStep:
    """A step on `below` that made `layer`."""
    return ForeignStep((*below.diffs, layer), len(below.diffs), own=True, made=_MADE)
