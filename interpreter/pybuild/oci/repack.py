"""The same layer in another compression: its tar, and so its diff id, stays."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import BinaryIO

from pybuild.errors import InvalidImage
from pybuild.oci.compression import CHUNK, Decompressed, Packing, compression_of, compressor
from pybuild.oci.descriptor import Descriptor, LayerDiff
from pybuild.values import replace


def is_packed(layer: LayerDiff, wanted: Packing) -> bool:
    """Whether the layer's blob will do for `wanted`: a level can't be seen on a blob."""
    return wanted.level is None and compression_of(layer.blob.media_type) is wanted.compression


def repack(
    layer: LayerDiff, blob: BinaryIO, wanted: Packing, sink: Callable[[bytes], object]
) -> LayerDiff:
    """Write the layer that `blob` holds, compressed as wanted, to `sink`.

    Raises InvalidImage if the blob isn't the layer.
    """
    packer = compressor(wanted)
    plain, packed, size = sha256(), sha256(), 0
    with Decompressed(blob) as stream:
        while piece := stream.read(CHUNK):
            plain.update(piece)
            part = packer.compress(piece)
            packed.update(part)
            size += len(part)
            sink(part)
    part = packer.flush()
    packed.update(part)
    sink(part)
    if f"sha256:{plain.hexdigest()}" != layer.diff_id:
        raise InvalidImage(f"the blob {layer.blob.digest} is not the layer {layer.diff_id}")
    descriptor = Descriptor(
        wanted.compression.media_type, f"sha256:{packed.hexdigest()}", size + len(part)
    )
    return replace(layer, blob=descriptor)
