"""The stages of a build as a drawing: what each starts from, and whose files it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from pybuild.htmlreport.markup import count, duration, text
from pybuild.htmlreport.recording import Recording, Unit
from pybuild.run.events import OriginKind, StageOrigin, StageOutline
from pybuild.run.output import cut

_MOST_NODES = 150
_WIDTH, _HEIGHT, _ACROSS, _DOWN, _MARGIN = 200, 46, 70, 22, 8
_LONGEST = 26  # columns of the name in a node


class _Place:
    """Something in a column; ``y`` is its upper edge."""

    height = 0

    def __init__(self) -> None:
        self.x = 0
        self.y = 0

    @property
    def middle(self) -> int:
        return self.y + self.height // 2


class _Passage(_Place):
    """Where a line passes a column."""

    height = 8


class _Node(_Place):
    """A stage, image or context."""

    height = _HEIGHT

    def __init__(self, name: str, note: str, kind: str) -> None:
        super().__init__()
        self.name = name
        self.note = note
        self.kind = kind
        self.starts_from: list[str] = []
        self.copies_from: list[str] = []

    @property
    def before(self) -> list[str]:
        return [*self.starts_from, *self.copies_from]


_Routes = dict[tuple[str, str], list[_Place]]
"""By the keys of two nodes, the places that the line between them goes through."""


def graph(recording: Recording) -> str:
    """An SVG drawing, from left to right."""
    if recording.plan is None:
        return '<p class="none">The build failed before it had a plan.</p>'
    nodes = _nodes(recording, recording.plan.stages)
    if len(nodes) > _MOST_NODES:
        return f'<p class="none">{count(len(nodes), "node")}: too many for a drawing.</p>'
    routes, width, height = _arrange(nodes)
    edges = "".join(_edges(nodes, routes))
    boxes = "".join(map(_box, nodes.values()))
    return (
        f'<div class="wide"><svg class="graph" viewBox="0 0 {width} {height}" width="{width}" '
        f'style="min-width:{width * 6 // 10}px" role="img" aria-label="the stages">{edges}{boxes}</svg></div>'
        '<p class="faint">A line leads from what a stage starts from; a broken one, from what files '
        "are taken of.</p>"
    )


def _nodes(recording: Recording, stages: Iterable[StageOutline]) -> dict[str, _Node]:
    """By keys that only this module knows; sources come before what needs them."""
    units: dict[str, list[Unit]] = {}
    for unit in recording.units.values():
        if unit.started.position:
            units.setdefault(unit.started.stage, []).append(unit)
    nodes: dict[str, _Node] = {}
    for stage in stages:
        node = _stage_node(stage, units.get(stage.label, []))
        parents = () if stage.parent is None else (stage.parent,)
        for origin in (*parents, *stage.takes):
            if origin.kind is not OriginKind.STAGE:
                nodes.setdefault(_key(origin), _origin_node(origin))
        node.starts_from = [_key(origin) for origin in parents]
        node.copies_from = [_key(origin) for origin in stage.takes if origin not in parents]
        nodes[_key(StageOrigin(OriginKind.STAGE, stage.label))] = node
    return nodes


def _key(origin: StageOrigin) -> str:
    return f"{origin.kind} {origin.name} {origin.digest}"


def _origin_node(origin: StageOrigin) -> _Node:
    name = origin.name.partition("@")[0] or "build context"
    return _Node(name, origin.kind.value, origin.kind.value)


def _stage_node(stage: StageOutline, units: Iterable[Unit]) -> _Node:
    states = [unit.state for unit in units]
    seconds = sum(unit.finished.seconds for unit in units if unit.finished is not None)
    cached = states.count("cached")
    kind = "stage target" if stage.is_target else "stage"
    if "failed" in states:
        kind += " failed"
    elif stage.steps and cached == stage.steps:
        kind += " cached"
    note = f"{count(stage.steps, 'step')}, {cached} cached, {duration(seconds)}"
    return _Node(stage.label, note, kind)


def _arrange(nodes: Mapping[str, _Node]) -> tuple[_Routes, int, int]:
    """Place the nodes in columns, each right of all that it needs; gives width and height too.

    A line that passes a column gets a place of its own there, so that it crosses no node.
    """
    column: dict[str, int] = {}
    for key, node in nodes.items():
        column[key] = max((column[other] + 1 for other in node.before), default=0)
    columns: list[list[_Place]] = [[] for _ in range(max(column.values(), default=0) + 1)]
    before: dict[_Place, list[_Place]] = {}
    routes: _Routes = {}
    for key, node in nodes.items():
        columns[column[key]].append(node)
        for other in node.before:
            route: list[_Place] = [nodes[other]]
            for at in range(column[other] + 1, column[key]):
                passed = _Passage()
                columns[at].append(passed)
                before[passed] = [route[-1]]
                route.append(passed)
            before.setdefault(node, []).append(route[-1])
            routes[other, key] = [*route, node]
    _order(columns, before)
    tallest = max(map(_tall, columns))
    for at, places in enumerate(columns):
        y = _MARGIN + (tallest - _tall(places)) // 2
        for place in places:
            place.x, place.y = _MARGIN + at * (_WIDTH + _ACROSS), y
            y += place.height + _DOWN
    width = len(columns) * (_WIDTH + _ACROSS) - _ACROSS + 2 * _MARGIN
    return routes, width, tallest + 2 * _MARGIN


def _order(columns: Sequence[list[_Place]], before: Mapping[_Place, Sequence[_Place]]) -> None:
    """Put each place of a column near the middle of those that lead to it."""
    rank: dict[_Place, float] = {place: row for row, place in enumerate(columns[0])}
    for places in columns[1:]:
        middles = {}
        for place in places:
            rows = [rank[other] for other in before[place]]
            middles[place] = sum(rows) / len(rows)
        places.sort(key=middles.__getitem__)
        rank.update({place: row for row, place in enumerate(places)})


def _tall(places: Sequence[_Place]) -> int:
    return sum(place.height + _DOWN for place in places) - _DOWN


def _edges(nodes: Mapping[str, _Node], routes: _Routes) -> Iterable[str]:
    for key, node in nodes.items():
        for others, kind in ((node.starts_from, "from"), (node.copies_from, "copy")):
            for other in others:
                yield f'<path class="{kind}" d="{_line(routes[other, key])}"/>'


def _line(route: Sequence[_Place]) -> str:
    first = route[0]
    parts = [f"M{first.x + _WIDTH} {first.middle}"]
    for start, end in pairwise(route):
        x, bend = start.x + _WIDTH, _ACROSS // 2
        parts.append(f"C{x + bend} {start.middle} {end.x - bend} {end.middle} {end.x} {end.middle}")
        if isinstance(end, _Passage):
            parts.append(f"H{end.x + _WIDTH}")
    return "".join(parts)


def _box(node: _Node) -> str:
    name, left = text(cut(node.name, _LONGEST)), node.x + 12
    return (
        f'<g class="node {node.kind}"><title>{text(node.name)}</title>'
        f'<rect x="{node.x}" y="{node.y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>'
        f'<text x="{left}" y="{node.y + 20}">{name}</text>'
        f'<text class="small" x="{left}" y="{node.y + 36}">{text(node.note)}</text></g>'
    )
