"""Results as a picture: for each workload a bar for each builder, readable in light and dark."""

from __future__ import annotations

from xml.sax.saxutils import escape

from reporting import OURS, WORKLOADS
from results import Results

_WIDTH, _BAR, _GAP, _HEAD = 760, 15, 14, 20
_LEFT, _RIGHT = 150, 70
_STYLE = """
  text { font: 12px sans-serif; fill: #24292f }
  .title { font-weight: bold }
  .peer { fill: #8c959f } .embedded { fill: #1a7f37 } .embedded-user { fill: #4ac26b }
  .containerd { fill: #218bff }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .peer { fill: #6e7681 } }
"""


def as_svg(results: Results) -> str:
    """Each workload has its own scale; the seconds stand beside the bars."""
    parts: list[str] = []
    top = _GAP
    for workload in WORKLOADS:
        row = results.found.get(workload.name)
        if not row:
            continue
        title = escape(f"{workload.name}: {workload.title}, seconds")
        parts.append(f'<text class="title" x="8" y="{top + 12}">{title}</text>')
        top += _HEAD
        longest = max(series.wall for series in row.values())
        for name, series in row.items():
            width = max(1.0, (_WIDTH - _LEFT - _RIGHT) * series.wall / longest)
            kind = name if name in OURS else "peer"
            middle = top + _BAR - 4
            size = f'width="{width:.1f}" height="{_BAR - 3}"'
            parts += (
                f'<text x="{_LEFT - 8}" y="{middle}" text-anchor="end">{escape(name)}</text>',
                f'<rect class="{kind}" x="{_LEFT}" y="{top}" {size}/>',
                f'<text x="{_LEFT + width + 6:.1f}" y="{middle}">{series.wall:.2f}</text>',
            )
            top += _BAR
        top += _GAP
    size = f'width="{_WIDTH}" height="{top}" viewBox="0 0 {_WIDTH} {top}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join((head, f"<style>{_STYLE}</style>", *parts, "</svg>", ""))
