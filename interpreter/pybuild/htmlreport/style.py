"""The look of a page, light and dark."""

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --panel: #f5f6f8; --line: #d5d9e0; --ink: #1b1f26;
  --faint: #5d6675; --link: #0b5cad; --done: #3b78c4; --cached: #8fa0b5; --failed: #c4302b;
  --warn: #9a6200; --warn-ground: #fff4dc; --error-ground: #fde8e7;
  --c0: #cfe0f7; --c1: #d7efd3; --c2: #fbe3c0; --c3: #ecd6f3; --c4: #cdeeed; --c5: #f9d6d9;
  --c6: #e8e6b8; --c7: #dedbd4; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171c; --panel: #1d2129; --line: #373e4a; --ink: #e4e8ee; --faint: #9aa5b5;
    --link: #7db8f5; --done: #5b98e0; --cached: #66758a; --failed: #ef6b65; --warn: #e6b450;
    --warn-ground: #33290f; --error-ground: #3c1c1b;
    --c0: #24405f; --c1: #27492a; --c2: #56401b; --c3: #472c52; --c4: #1f4a49; --c5: #57292d;
    --c6: #484618; --c7: #403d38; } }
* { box-sizing: border-box; }
html { background: var(--ground); color: var(--ink); font: 14px/1.5 system-ui, sans-serif; }
body { max-width: 1120px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 22px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 34px 0 10px; }
h3 { font-size: 14px; margin: 20px 0 8px; }
a { color: var(--link); }
code, pre { font: 12.5px/1.5 ui-monospace, monospace; }
pre { background: var(--ground); border: 1px solid var(--line); border-radius: 4px; padding: 8px 10px;
  overflow-x: auto; margin: 4px 0; }
.faint, .none { color: var(--faint); }
.error { color: var(--failed); overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 14px 0; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
.badge { display: inline-block; border-radius: 4px; padding: 0 8px; color: #fff; background: #2c7a3f;
  font-size: 13px; vertical-align: 3px; }
.badge.failed { background: #b3261e; }
.banner { background: var(--error-ground); border-left: 4px solid var(--failed); padding: 8px 12px;
  overflow-wrap: anywhere; }
.timeline { border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
.row { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 6fr) 108px; gap: 12px;
  align-items: center; padding: 3px 10px; }
summary.row { cursor: pointer; list-style: none; }
summary.row::-webkit-details-marker { display: none; }
summary.row .title::before { content: "\\25b8\\00a0"; color: var(--faint); }
details[open] > summary.row .title::before { content: "\\25be\\00a0"; }
.row:hover { background: var(--panel); }
.row .title { white-space: nowrap; overflow: hidden; text-overflow: ellipsis;
  font: 12.5px/1.6 ui-monospace, monospace; }
.row.cached .title { color: var(--faint); }
.row .note { text-align: right; color: var(--faint); font-size: 12.5px; white-space: nowrap; }
.row.failed .note { color: var(--failed); }
.track { position: relative; height: 14px; display: block;
  background: repeating-linear-gradient(to right, var(--line) 0 1px, transparent 1px 25%); }
.axis .track span { position: absolute; font-size: 11px; line-height: 14px; padding-left: 4px;
  color: var(--faint); }
.bar { position: absolute; top: 2px; height: 10px; min-width: 3px; border-radius: 2px;
  background: var(--done); }
.bar.cached { background: repeating-linear-gradient(45deg, var(--cached) 0 3px, transparent 3px 5px);
  outline: 1px solid var(--cached); }
.bar.failed { background: var(--failed); }
.bar.cancelled, .bar.running { background: var(--warn); }
.told { background: var(--panel); padding: 6px 14px 10px 26px; }
.told p { margin: 4px 0; }
.causes { margin: 0; padding-left: 20px; overflow-wrap: anywhere; }
.graph { display: block; max-width: 100%; height: auto; }
.graph rect { fill: var(--panel); stroke: var(--line); stroke-width: 1.5; }
.graph text { fill: var(--ink); font: 13px system-ui, sans-serif; }
.graph .small { fill: var(--faint); font-size: 11.5px; }
.graph .stage rect { stroke: var(--done); }
.graph .cached rect { stroke: var(--cached); stroke-dasharray: 4 2; }
.graph .failed rect { stroke: var(--failed); fill: var(--error-ground); }
.graph .target rect { stroke-width: 3; }
.graph path { fill: none; stroke: var(--faint); stroke-width: 1.5; }
.graph path.copy { stroke-dasharray: 5 4; }
.map { position: relative; overflow: hidden; width: 100%; aspect-ratio: 1000 / 440; min-height: 240px; margin: 10px 0 16px; }
.map div { position: absolute; overflow: hidden; }
.map .layer { border: 1px solid var(--ground); }
.map .layer b { display: block; padding: 0 4px; font-size: 11.5px; line-height: 17px; white-space: nowrap; }
.map .file { border: 1px solid var(--ground); font-size: 11px; line-height: 1.3; white-space: nowrap; }
.map .file span { display: block; padding: 1px 4px; overflow: hidden; text-overflow: ellipsis; }
.map .file:hover { outline: 2px solid var(--link); outline-offset: -2px; }
.c0 { background: var(--c0); } .c1 { background: var(--c1); } .c2 { background: var(--c2); }
.c3 { background: var(--c3); } .c4 { background: var(--c4); } .c5 { background: var(--c5); }
.c6 { background: var(--c6); } .c7 { background: var(--c7); }
.key { display: inline-block; width: 11px; height: 11px; margin-right: 7px; border-radius: 2px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 4px 10px; border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 500; }
td:nth-child(n+3), th:nth-child(n+3) { text-align: right; white-space: nowrap; }
td:first-child { white-space: nowrap; }
td:nth-child(2) { overflow-wrap: anywhere; }
tfoot td { border: 0; font-weight: 600; }
td summary { color: var(--faint); cursor: pointer; font-size: 12.5px; }
td ol { margin: 2px 0; }
.warnings { padding-left: 20px; }
.warnings li { margin: 4px 0; overflow-wrap: anywhere; }
.source { border: 1px solid var(--line); border-radius: 6px; overflow-x: auto; padding: 6px 0; }
.line { display: flex; white-space: pre; min-width: max-content; }
.line a { flex: none; width: 52px; padding-right: 14px; text-align: right; color: var(--faint);
  text-decoration: none; font: 12.5px/1.5 ui-monospace, monospace; }
.line.warning { background: var(--warn-ground); }
.line.error { background: var(--error-ground); color: inherit; }
.line:target { outline: 2px solid var(--link); outline-offset: -2px; }
.remark { padding: 1px 14px 3px 52px; font-size: 13px; color: var(--warn); background: var(--warn-ground); }
.remark.error { color: var(--failed); background: var(--error-ground); }
@media (max-width: 700px) { .row { grid-template-columns: minmax(0, 1fr) 108px; }
  .row .track { grid-column: 1 / -1; grid-row: 2; } }
"""
