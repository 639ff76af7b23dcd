"""Base images that change at their registry: builds with and without a lock, on both backends."""

from __future__ import annotations

import json

import pytest
from commandline import CommandLine
from test_docker_registry import layer
from test_pulls import OTHER, busybox_layer, config

from pybuild.oci.descriptor import Descriptor
from pybuild.oci.platform import Platform, host_platform, parse_platform
from pybuild.testkit.registry import Registry


@pytest.fixture(params=["containerd", "embedded"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def push(registry: Registry, mark: str, name: str = "base:1") -> Descriptor:
    """An index with a runnable image whose label is `mark`, and one for another machine."""
    blob, diff_id = busybox_layer()
    here = host_platform()
    found = config(here, diff_id, Env=["PATH=/bin"], Labels={"mark": mark})
    manifest = registry.add_image("base", found, [blob])
    other, other_id = layer(f"other-{mark}", 100)
    far: Platform = parse_platform(OTHER)
    foreign = registry.add_image("base", config(far, other_id), [other])
    registry.add_index(name, [(manifest, here), (foreign, far)])
    return manifest


def asked(registry: Registry) -> list[str]:
    """The requests since this was called last."""
    found = [f"{one.method} {one.path}" for one in registry.requests]
    registry.requests.clear()
    return found


def mark_of(pybuild: CommandLine, digest: str) -> str:
    mark: str = pybuild.config(digest)["config"]["Labels"]["mark"]
    return mark


def test_with_a_lock_and_the_content_here_no_registry_is_asked(elsewhere: CommandLine) -> None:
    with Registry() as registry:
        first = push(registry, "first")
        name = f"{registry.address}/base:1"
        context = elsewhere.context(
            f"FROM {name} AS a\nRUN echo ran > /ran\nFROM {name}\nCOPY --from=a /ran /\n"
            f"RUN --mount=from={name},target=/m ls /m/bin > /listed\n"
            f"COPY --from={registry.address}/base@{first.digest} /bin /copied\n",
        )
        elsewhere.build("lock", context)
        assert asked(registry)
        built = elsewhere.build("--locked", context).digest
        assert asked(registry)
        # the name leads elsewhere now, and nobody looks
        push(registry, "second")
        for options in ([], ["--pull"], ["--pull", "--no-cache"]):
            again = elsewhere.build("--locked", *options, context).digest
            assert mark_of(elsewhere, again) == "first"
            assert asked(registry) == []
        assert built
        # without it, the new one is found
        assert mark_of(elsewhere, elsewhere.build("--pull", context).digest) == "second"
        assert asked(registry)


def test_content_that_is_missing_is_pulled_by_digest(elsewhere: CommandLine) -> None:
    with Registry() as registry:
        push(registry, "first")
        context = elsewhere.context(f"FROM {registry.address}/base:1\nRUN echo ran > /ran\n")
        elsewhere.build("lock", context)
        push(registry, "second")
        asked(registry)
        assert mark_of(elsewhere, elsewhere.build("--locked", context).digest) == "first"
        requests = asked(registry)
        assert requests
        assert not any("/manifests/1" in one for one in requests)


def test_an_image_that_was_pulled_without_the_lock_is_here_for_it(elsewhere: CommandLine) -> None:
    with Registry() as registry:
        push(registry, "first")
        context = elsewhere.context(f"FROM {registry.address}/base:1\nRUN echo ran > /ran\n")
        elsewhere.build("lock", context)
        plain = elsewhere.build("--source-date-epoch=1", context).digest
        asked(registry)
        locked = elsewhere.build("--source-date-epoch=1", "--locked", "--pull", context)
        assert asked(registry) == []
        # and so are its steps
        assert "CACHED" in locked.err
        assert locked.digest == plain


def test_a_name_that_is_not_locked_fails_before_a_registry_is_asked(elsewhere: CommandLine) -> None:
    with Registry() as registry:
        push(registry, "first")
        name = f"{registry.address}/base:1"
        context = elsewhere.context(f"FROM {name}\nRUN echo ran\n")
        elsewhere.build("lock", context)
        (context / "Dockerfile").write_text(f"FROM scratch\nCOPY --from={name[:-1]}2 / /\n")
        asked(registry)
        said = elsewhere.fail(2, "--locked", context)
        assert "base:2 is not in the lock file\n  --> Dockerfile:2\n" in said
        assert "pybuild lock adds it" in said
        assert asked(registry) == []


# What docker build does with an image that is pushed again


def test_an_image_that_was_pushed_again_is_taken_with_pull_alone(elsewhere: CommandLine) -> None:
    with Registry() as registry:
        push(registry, "first")
        context = elsewhere.context(
            f"FROM {registry.address}/base:1\nRUN echo a > /a\nRUN echo b > /b\n"
        )

        def built(*options: str) -> tuple[str, int]:
            ended = elsewhere.build("--progress=plain", *options, context)
            return mark_of(elsewhere, ended.digest), ended.err.count("CACHED\n")

        assert built() == ("first", 0)
        assert built() == ("first", 2)
        asked(registry)
        push(registry, "second")
        # the local one is good enough
        assert built() == ("first", 2)
        assert asked(registry) == []
        # another digest, so that all steps above it are others
        assert built("--pull") == ("second", 0)
        # the same digest again
        assert built("--pull") == ("second", 2)
        assert any("HEAD" in one or "/manifests/1" in one for one in asked(registry))
        # from now on this is the local one
        assert built() == ("second", 2)


def test_no_cache_runs_all_and_pulls_nothing_anew(elsewhere: CommandLine) -> None:
    with Registry() as registry:
        push(registry, "first")
        context = elsewhere.context(
            f"FROM {registry.address}/base:1 AS one\nRUN echo a > /a\n"
            f"FROM {registry.address}/base:1\nCOPY --from=one /a /\nRUN echo b > /b\n"
        )

        def cached(*options: str) -> int:
            return elsewhere.build("--progress=plain", *options, context).err.count("CACHED\n")

        assert cached() == 0
        push(registry, "second")
        asked(registry)
        assert cached() == 3
        assert cached("--no-cache") == 0
        # what ran again is kept
        assert cached() == 3
        # the stage runs again; what it makes is the same, and so is what copies it
        assert cached("--no-cache-filter=one") == 2
        assert asked(registry) == []


def test_a_pulled_image_is_no_result_of_a_step(elsewhere: CommandLine) -> None:
    """Its history says that it was made so; only a build of our own counts."""
    with Registry() as registry:
        push(registry, "base")
        base = f"FROM {registry.address}/base:1\n"
        context = elsewhere.context(f"{base}RUN echo a > /a\n")
        made = elsewhere.build("--source-date-epoch=1", "-t", "made", context).digest
        document = json.loads(elsewhere.blob(elsewhere.manifest(made)["config"]["digest"]))
        blob, diff_id = layer("a", 100)
        document["rootfs"]["diff_ids"][1] = diff_id
        registry.add_image("poisoned:1", document, [busybox_layer()[0], blob])
        poisoned = elsewhere.context(f"FROM {registry.address}/poisoned:1\n")
        elsewhere.build("--pull", poisoned)
        again = elsewhere.context(f"{base}RUN echo a  > /a\n")
        ended = elsewhere.build("--progress=plain", "--source-date-epoch=1", again)
        assert "CACHED" not in ended.err
        assert diff_id not in elsewhere.diff_ids(ended.digest)
