from __future__ import annotations

import pytest

from pybuild.errors import UsageError
from pybuild.export.outputs import (
    DockerLoadOutput,
    DockerOutput,
    ImageOptions,
    ImageOutput,
    LocalOutput,
    OciOutput,
    Output,
    RegistryOutput,
    TarOutput,
    parse_output,
)
from pybuild.oci.compression import Compression, Packing


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("out", LocalOutput(dest="out")),
        ("-", TarOutput(dest="-")),
        ("type=local,dest=out", LocalOutput(dest="out")),
        ("type=tar,dest=a.tar", TarOutput(dest="a.tar")),
        ("type=tar", TarOutput(dest="-")),
        ("type=oci,dest=a.tar", OciOutput(dest="a.tar")),
        ("type=oci", OciOutput(dest="-")),
        ("type=oci,dest=a,tar=false", OciOutput(dest="a", tar=False)),
        ("type=docker", DockerLoadOutput()),
        ("type=docker,dest=-", DockerOutput(dest="-")),
        ("type=image", ImageOutput()),
        ("type=image,push=true,push-by-digest=1", ImageOutput(push=True, by_digest=True)),
        ("TYPE=registry", RegistryOutput()),
        ("type=registry,name=a:1", RegistryOutput(image=ImageOptions(names=("a:1",)))),
        ('type=image,"name=a,b:2"', ImageOutput(image=ImageOptions(names=("a", "b:2")))),
        ('type=tar,"dest=a,b=c.tar"', TarOutput(dest="a,b=c.tar")),
    ],
)
def test_outputs_are_read_as_docker_reads_them(text: str, output: Output) -> None:
    assert parse_output(text) == output


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("compression=zstd", ImageOptions(packing=Packing(Compression.ZSTD))),
        ("compression=uncompressed", ImageOptions(packing=Packing(Compression.NONE))),
        ("compression-level=9", ImageOptions(packing=Packing(Compression.GZIP, 9))),
        (
            "compression=zstd,compression-level=22,force-compression=true",
            ImageOptions(packing=Packing(Compression.ZSTD, 22), force_compression=True),
        ),
        ("oci-mediatypes=false", ImageOptions(oci_media_types=False)),
        ("rewrite-timestamp=true", ImageOptions()),
        (
            "annotation.a.B=x=y,annotation-manifest.c=",
            ImageOptions(annotations={"a.B": "x=y", "c": ""}),
        ),
    ],
)
def test_every_output_of_an_image_takes_the_same_options(text: str, options: ImageOptions) -> None:
    assert parse_output(f"type=image,{text}") == ImageOutput(image=options)
    assert parse_output(f"type=oci,dest=o,{text}") == OciOutput(dest="o", image=options)
    assert parse_output(f"type=docker,{text}") == DockerLoadOutput(image=options)
    assert parse_output(f"type=registry,{text}") == RegistryOutput(image=options)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("type=dockr", 'there is no type "dockr"', "did you mean docker?"),
        ("dest=x", "it has no type", "there are: image"),
        ("", "it has no type", "there are: image"),
        ("type=image,a", '"a" is not KEY=VALUE', None),
        ("type=image,name=a,name=b", "name is given twice", None),
        ("type=image,compresion=gzip", 'no option "compresion"', "did you mean compression?"),
        ("type=tar,name=x", 'type=tar has no option "name"', "there are: dest"),
        ("type=local", "needs dest", "type=tar"),
        ("type=local,dest=-", "needs dest", "type=tar"),
        ("type=tar,dest=", "dest is empty", None),
        ("type=oci,tar=false", "needs dest", None),
        ("type=image,push=yes", "not true or false", None),
        ("type=registry,push=false", "always pushes", "type=image"),
        ("type=image,compression=gzp", 'compression "gzp"', "did you mean gzip?"),
        ("type=image,compression-level=10", "is not 0 to 9", None),
        ("type=image,compression=zstd,compression-level=0", "is not 1 to 22", None),
        ("type=image,compression-level=-1", "is not 0 to 9", None),
        ("type=image,compression=uncompressed,compression-level=1", "there is no", None),
        ("type=image,annotation-index-descriptor.a=b", "has no option", "there are"),
        ('type=image,"name=a', "unexpected end of data", None),
        ("type=tar,dest=a\nb", "new-line", None),
    ],
)
def test_a_wrong_output_is_told_with_what_was_meant(
    text: str, message: str, hint: str | None
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_output(text)
    assert message in caught.value.message
    assert (caught.value.hint is None) == (hint is None)
    assert hint is None or hint in (caught.value.hint or "")
