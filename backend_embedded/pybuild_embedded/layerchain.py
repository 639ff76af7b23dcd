"""A chain of layers with its chain ids, which cost nothing to extend."""

from __future__ import annotations

from collections.abc import Iterable

from pybuild.oci.descriptor import LayerDiff, chain_id
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class LayerChain:
    """Layers over each other, bottom first; ``ids`` name each with those below it."""

    layers: tuple[LayerDiff, ...] = ()
    ids: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The chain id of all; empty for none."""
        return self.ids[-1] if self.ids else ""

    def extended(self, layer: LayerDiff) -> LayerChain:
        """With one more layer on top."""
        above = chain_id((self.id, layer.diff_id)) if self.ids else layer.diff_id
        return LayerChain((*self.layers, layer), (*self.ids, above))


def chain_of(layers: Iterable[LayerDiff]) -> LayerChain:
    """The chain of `layers`, bottom first."""
    chain = LayerChain()
    for layer in layers:
        chain = chain.extended(layer)
    return chain
