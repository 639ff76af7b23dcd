"""The inputs that hypothesis makes for each of `readers.READERS`, and how it is driven."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from packed import INDEXES, LAYERS
from texts import DEVICES, DOCKERFILES, IGNORE_FILES, MOUNTS, TRIGGERS, WORDS


def _encoded(texts: SearchStrategy[str]) -> SearchStrategy[bytes]:
    return texts.map(lambda text: text.encode("utf-8", "surrogateescape"))


INPUTS: Mapping[str, SearchStrategy[bytes]] = {
    "dockerfile": _encoded(DOCKERFILES),
    "words": _encoded(WORDS),
    "trigger": _encoded(TRIGGERS),
    "ignore": _encoded(IGNORE_FILES),
    "mounts": _encoded(MOUNTS),
    "device": _encoded(DEVICES),
    "index": INDEXES,
    "layer": LAYERS,
}
_NOISE = st.binary(max_size=2 * 512)


def drive(
    reader: str, call: Callable[[bytes], object], examples: int, number: int | None = None
) -> None:
    """Call with `examples` inputs for `reader`, the same ones for the same `number`."""
    many = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=number is None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )

    def take(data: bytes) -> None:
        call(data)

    given_inputs = many(given(st.one_of(INPUTS[reader], INPUTS[reader], _NOISE))(take))
    if number is not None:
        given_inputs = seed(number)(given_inputs)
    given_inputs()
