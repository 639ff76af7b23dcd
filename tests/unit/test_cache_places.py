from __future__ import annotations

from typing import Any

import pytest

from pybuild.cachetransfer.caches import cache_request
from pybuild.cachetransfer.places import (
    CacheMode,
    InlineExport,
    LocalExport,
    LocalImport,
    RegistryExport,
    RegistryImport,
    parse_cache_from,
    parse_cache_to,
)
from pybuild.errors import UsageError
from pybuild.oci.reference import parse_reference

APP = parse_reference("reg.example/app:latest")
DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("reg.example/app", [RegistryImport(ref=APP)]),
        ("type=registry,ref=reg.example/app", [RegistryImport(ref=APP)]),
        ("TYPE=registry,Ref=reg.example/app", [RegistryImport(ref=APP)]),
        (
            "reg.example/app,reg.example/app:1",
            [RegistryImport(ref=APP), RegistryImport(ref=parse_reference("reg.example/app:1"))],
        ),
        ("type=local,src=/tmp/cache", [LocalImport(src="/tmp/cache")]),
        ('"type=local","src=/a,b",tag=x', [LocalImport(src="/a,b", tag="x")]),
        (f"type=local,src=c,digest={DIGEST}", [LocalImport(src="c", digest=DIGEST)]),
    ],
)
def test_caches_to_look_into_are_understood(text: str, found: Any) -> None:
    assert list(parse_cache_from(text)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("reg.example/app", RegistryExport(ref=APP)),
        ("type=inline", InlineExport()),
        ("type=inline,mode=min", InlineExport()),
        (
            "type=registry,ref=reg.example/app,mode=max,ignore-error=true",
            RegistryExport(ref=APP, mode=CacheMode.MAX, ignore_error=True),
        ),
        (
            "type=registry,ref=reg.example/app,compression=gzip,oci-mediatypes=1,image-manifest=1",
            RegistryExport(ref=APP),
        ),
        (
            "type=registry,mounts=a,/root/.cache,b,ref=reg.example/app",
            RegistryExport(ref=APP, mounts=("a", "/root/.cache", "b")),
        ),
        (
            'type=local,dest=c,tag=x,"mounts=a,b"',
            LocalExport(dest="c", tag="x", mounts=("a", "b")),
        ),
    ],
)
def test_caches_to_write_are_understood(text: str, found: Any) -> None:
    assert parse_cache_to(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names nothing"),
        ("type=registry", "it has no ref"),
        ("type=local", "it has no src"),
        ("src=x", "it has no type"),
        ("type=inline", "type=inline is for --cache-to"),
        ("type=s3,bucket=x", "caches in S3 (type=s3) are not supported"),
        ("type=registri,ref=x", 'there is no type "registri"'),
        ("type=registry,ref=x,scope=y", 'type=registry has no option "scope"'),
        ("type=registry,ref=x,ref=y", "ref is given twice"),
        ("type=registry,ref=UPPER", "invalid image name"),
        ("type=registry,ref=x,y", '"y" is not KEY=VALUE'),
        ("type=registry,,ref=x", "a part of it is empty"),
        ('type="registry', "--cache-from"),
    ],
)
def test_caches_that_cant_be_looked_into_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_cache_from(text)
    assert said in caught.value.message
    assert "--cache-from" in caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("type=registry,mode=max", "it has no ref"),
        ("type=local,mode=max", "it has no dest"),
        ("type=gha,mode=max", "caches in GitHub's cache (type=gha) are not supported"),
        ("type=azblob", "Azure"),
        ("type=registry,ref=x,mode=most", 'the mode "most" is not min or max'),
        ("type=inline,mode=max", "mode=max is for other types"),
        ("type=inline,mounts=a", "no room for cache mounts"),
        (f"type=registry,ref=x@{DIGEST}", "under a tag, not a digest"),
        ("type=registry,ref=x,compression=zstd", "as they are stored"),
        ("type=registry,ref=x,compression-level=3", "as they are stored"),
        ("type=registry,ref=x,force-compression=true", "as they are stored"),
        ("type=local,dest=x,oci-mediatypes=false", "never oci-mediatypes=false"),
        ("type=registry,ref=x,image-manifest=false", "never image-manifest=false"),
        ("type=registry,ref=x,ignore-error=perhaps", "not true or false"),
        ("type=local,dest=x,scope=y", 'type=local has no option "scope"'),
    ],
)
def test_caches_that_cant_be_written_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_cache_to(text)
    assert said in caught.value.message


def test_a_request_takes_texts_and_values_each_once() -> None:
    request = cache_request(
        ["reg.example/app", RegistryImport(ref=APP)], ["type=inline", InlineExport()]
    )
    assert request.imports == (RegistryImport(ref=APP),)
    assert request.exports == (InlineExport(),)
