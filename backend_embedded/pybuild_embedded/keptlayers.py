"""Layers that failed steps left, as the folders they are.

Until it is asked for, one is a settled folder with its name in place of a chain, and a step
whose result is the chain below. Whoever opens it packs it: then it is a step like any other.
"""

from __future__ import annotations

from pybuild.backend import Activity, ROLayer, RWLayer
from pybuild.keptlayers import KeptLayers
from pybuild_embedded.collecting import KEPT
from pybuild_embedded.folders import LayerFolder
from pybuild_embedded.layerchain import LayerChain, chain_of
from pybuild_embedded.layers import EmbeddedROLayer
from pybuild_embedded.newlayers import EmbeddedRWLayer
from pybuild_embedded.sessions import Part
from pybuild_embedded.space import Space

_BELOW = " below"


class EmbeddedKeptLayers(KeptLayers):
    """See :class:`pybuild.keptlayers.KeptLayers`."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def keep(self, name: str, layer: RWLayer | ROLayer, activity: Activity) -> None:
        self.forget(name)
        if isinstance(layer, RWLayer):
            changed = layer.give_up_folder() if isinstance(layer, EmbeddedRWLayer) else None
            if changed is None:
                layer.commit(KEPT + name, activity).release()
            else:
                self._keep_folder(self._key(name), *changed)
            return
        with layer.begin(runs=False) as same:
            same.commit(KEPT + name, activity).release()

    def open(self, name: str, activity: Activity) -> ROLayer | None:
        space, key = self._space, self._key(name)
        folder = space.store.folder(key, space.machine.flavour)
        below = space.store.step(key + _BELOW, space.store.origins)
        if folder is not None and below is not None:
            same = EmbeddedRWLayer(
                space, EmbeddedROLayer(space, chain_of(below.layers)), runs=True, newest=None
            )
            with same.commit_folder(folder, KEPT + name, activity) as packed:
                _ = packed.diff  # waits
            self._drop(key, key + _BELOW)
        found = space.store.step(key, space.store.origins)
        if found is None:
            return None
        return EmbeddedROLayer(space, chain_of(found.layers), made=found.made_at)

    def forget(self, name: str) -> None:
        key = self._key(name)
        with self._space.store.database.reading() as connection:
            query = "SELECT chain FROM steps WHERE key=? AND own"
            made = connection.execute(query, (key,)).fetchone()
        self._drop(key, key, key + _BELOW)
        if made is not None:
            self._drop(*made)

    def _key(self, name: str) -> str:
        return self._space.own_key(KEPT + name)

    def _keep_folder(self, key: str, folder: LayerFolder, below: LayerChain) -> None:
        store, machine = self._space.store, self._space.machine
        store.record_layers(below.layers)
        store.record_step(key + _BELOW, below.id, own=False)
        [size] = machine.measure([folder.fs])
        store.settle(folder, key, machine.flavour, size=size, lasting=False)

    def _drop(self, chain: str, *keys: str) -> None:
        """Forget these steps, and the folder called `chain`, which goes if nobody uses it."""
        store = self._space.store
        gone = []
        with store.database.writing() as connection:
            connection.executemany("DELETE FROM steps WHERE key=?", [(key,) for key in keys])
            query = "SELECT ident FROM folders WHERE chain=? AND session IS NULL"
            for (ident,) in connection.execute(query, (chain,)).fetchall():
                used = "SELECT 1 FROM pins WHERE part=? AND ident=?"
                if connection.execute(used, (Part.FOLDER, ident)).fetchone():
                    change = "UPDATE folders SET chain=? WHERE ident=?"
                    connection.execute(change, (f"{KEPT}{ident}", ident))
                else:
                    connection.execute("DELETE FROM folders WHERE ident=?", (ident,))
                    gone.append(ident)
        for ident in gone:
            store.trash.put(store.root / "layers" / ident)
