"""The page's style sheet; the colours of lines are Okabe and Ito's, told apart by colour-blind readers."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1c1e; --soft: #5c5c63; --rule: #dcdce0; --good: #00664a;
  --bad: #a63a00; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0578d; --c4: #b07800; --c5: #3a9bd4;
  --k0: #4e79a7; --k1: #f28e2b; --k2: #e15759; --k3: #4aa8a2; --k4: #59a14f; --k5: #c9a227; --k6: #b07aa1;
  --k7: #ff7f9b; --k8: #9c755f; --k9: #8c8c94; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17171a; --ink: #ececf0; --soft: #a3a3ad; --rule: #37373d; --good: #4cc9a0; --bad: #ff9a5c;
    --c0: #56b4e9; --c1: #e8803c; --c2: #2fc49a; --c3: #e09cc2; --c4: #e69f00; --c5: #f0e442; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 16px; }
h1 { margin: 0; font-size: 1.5rem; overflow-wrap: anywhere; }
h1 small { color: var(--soft); font-size: 1rem; font-weight: normal; }
h2 { margin: 2rem 0 .5rem; font-size: 1.15rem; }
.verdict { margin: .75rem 0; padding: .5rem .75rem; border-left: 4px solid var(--good); font-size: 1.1rem; }
.verdict.bad { border-color: var(--bad); }
.facts { margin: .25rem 0; color: var(--soft); font-size: .875rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 16px; }
figure { margin: 0; min-width: 0; }
.charts figure { display: grid; grid-template-rows: subgrid; grid-row: span 3; row-gap: 2px; align-items: end; }
.charts .look { align-self: start; }
figcaption { font-weight: 600; font-size: .9rem; }
svg { display: block; width: 100%; height: auto; font-size: 11px; }
svg text { fill: var(--ink); }
svg .tick, svg .axis { fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .axis { text-anchor: middle; }
.grid { stroke: var(--rule); stroke-width: 1; }
.line polyline { fill: none; stroke: var(--c); stroke-width: 1.75; stroke-linejoin: round; }
.line.dash polyline { stroke-dasharray: 5 3; }
.line .lead { stroke-width: 1; opacity: .5; }
.line circle { fill: var(--c); opacity: 0; stroke: transparent; stroke-width: 8; }
.line.few circle, .line circle:hover { opacity: 1; }
.mark line { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 2 3; }
.mark text { fill: var(--bad); }
.mark text, .line text { stroke: var(--paper); stroke-width: 4; paint-order: stroke; }
.look { margin: .25rem 0 .75rem; max-width: 46rem; color: var(--soft); font-size: .85rem; line-height: 1.4; }
figure .look { margin: .15rem 0 0; }
.formula { margin: .25rem 0; }
.beside { display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: flex-start; }
.beside .scroll { max-width: 100%; }
.beside th { white-space: normal; }
sub { font-size: .7em; line-height: 0; }
h3 { margin: 1rem 0 .35rem; font-size: .9rem; }
.sheet { position: absolute; }
.rows { display: flex; flex-wrap: wrap; gap: 12px 28px; }
.tiles { max-width: 100%; display: flex; flex-wrap: wrap; gap: 8px; }
.pairs .tiles { margin-bottom: 8px; }
.tile { width: 64px; }
.tile svg { border-radius: 3px; image-rendering: pixelated; outline: 1px solid var(--rule); }
.tile.asked { margin-right: 6px; }
.tile.wrong svg { outline: 2px solid var(--bad); }
.tile figcaption { color: var(--soft); font-size: .7rem; font-weight: normal; text-align: center;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
.tile.wrong figcaption { color: var(--bad); }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 4px 24px; }
.six { flex-wrap: nowrap; gap: 6px; }
.six .tile { flex: 0 1 64px; min-width: 0; }
.pairs .tile { flex-basis: 54px; }
.rows .six { flex: 0 1 auto; }
.points path { fill: none; stroke-width: 5; stroke-linecap: round; opacity: .75; }
.names text { font-weight: 700; font-size: 14px; text-anchor: middle; stroke: var(--paper); stroke-width: 4;
  paint-order: stroke; }
.frame { fill: none; stroke: var(--rule); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th[scope=row] { font-weight: normal; white-space: nowrap; }
b { font-weight: 700; }
.loose th[scope=row], .loose td { min-width: 5.5rem; white-space: normal; overflow-wrap: anywhere; }
.versions th[scope=row] { white-space: nowrap; }
.numbers td, .numbers th[scope=col] { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
@media (max-width: 480px) {
  th, td { padding-right: .6rem; }
  .numbers th[scope=row], .tight th[scope=row] { white-space: normal; }
}
details { margin-top: .75rem; }
summary { cursor: pointer; }
"""
