"""A treemap: rectangles whose areas are sizes, as near to squares as they can be.

The layout is that of Bruls, Huizing and van Wijk, Squarified Treemaps (2000).
"""

from __future__ import annotations

from collections.abc import Sequence

from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class Rectangle:
    """In the units of the rectangle that was filled."""

    left: float
    top: float
    width: float
    height: float


def squarified(sizes: Sequence[float], room: Rectangle) -> list[Rectangle]:
    """A part of `room` for each of `sizes`, which are positive and come largest first."""
    total = sum(sizes)
    if total <= 0 or room.width <= 0 or room.height <= 0:
        return [Rectangle(room.left, room.top, 0, 0) for _ in sizes]
    scale = room.width * room.height / total
    areas = [size * scale for size in sizes]
    placed: list[Rectangle] = []
    start = 0
    while start < len(areas):
        side = min(room.width, room.height)
        end = _row_end(areas, start, side)
        row = areas[start:end]
        placed += _placed(row, room)
        room = _rest(sum(row), room)
        start = end
    return placed


def _row_end(areas: Sequence[float], start: int, side: float) -> int:
    """Where the row that begins at `start` ends: one more would make its rectangles longer."""
    total, end = areas[start], start + 1
    worst = _worst(areas[start], areas[start], total, side)
    while end < len(areas):
        longer = _worst(areas[start], areas[end], total + areas[end], side)
        if longer > worst:
            break
        total, worst, end = total + areas[end], longer, end + 1
    return end


def _worst(largest: float, smallest: float, total: float, side: float) -> float:
    """The worst ratio of sides in a row along `side`."""
    if smallest <= 0 or side <= 0:
        return float("inf")
    square, whole = side * side, total * total
    return max(square * largest / whole, whole / (square * smallest))


def _placed(row: Sequence[float], room: Rectangle) -> list[Rectangle]:
    total = sum(row)
    placed = []
    if room.width >= room.height:
        width, at = min(total / room.height, room.width), room.top
        for area in row:
            height = room.height * area / total
            placed.append(Rectangle(room.left, at, width, height))
            at += height
        return placed
    height, at = min(total / room.width, room.height), room.left
    for area in row:
        width = room.width * area / total
        placed.append(Rectangle(at, room.top, width, height))
        at += width
    return placed


def _rest(area: float, room: Rectangle) -> Rectangle:
    if room.width >= room.height:
        used = min(area / room.height, room.width)
        return Rectangle(room.left + used, room.top, room.width - used, room.height)
    used = min(area / room.width, room.height)
    return Rectangle(room.left, room.top + used, room.width, room.height - used)
