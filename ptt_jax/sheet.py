"""What a page is made of: its style, its script, tables, figures, and the document around them. Nothing is fetched.

The policy in its head lets no browser load anything, and run no script and no style but the two in this file, named by
their hashes: what slips into the page from somebody's data is text, whatever it says.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --raised: #f6f7f9; --ink: #1b1f24; --soft: #57606a; --line: #d8dde3;
  --grid: #e9ecf0; --accent: #0072b2; --truth: #1b1f24; --m0: #b0578d; --m1: #00805d; --m2: #0072b2; --m3: #d04f00;
  --m4: #7a5ab5; --m5: #8a6d00; --m6: #4b6a77; --m7: #a03a3a; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161b; --raised: #1b2129; --ink: #e7ebf0; --soft: #a3adb8;
  --line: #323b46; --grid: #262e37; --accent: #6db6ee; --truth: #e7ebf0; --m0: #e08fc0; --m1: #2fbf94; --m2: #5aaef0;
  --m3: #ff8c42; --m4: #b69cf0; --m5: #e0bd3c; --m6: #93b5c4; --m7: #f08a8a; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
main, header { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 32px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 4px; }
section { padding: 26px 0 6px; border-top: 1px solid var(--line); margin-top: 26px; }
p, figcaption, caption { max-width: 78ch; }
p { margin: 6px 0 12px; }
.lead { color: var(--soft); overflow-wrap: anywhere; }
nav ul, .legend, .facts { list-style: none; display: flex; flex-wrap: wrap; padding: 0; }
nav ul { gap: 4px 18px; margin: 16px 0 0; font-size: .95rem; }
a { color: var(--accent); }
.facts { gap: 10px; margin: 18px 0 0; }
.facts div { flex: 1 1 150px; background: var(--raised); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 14px; }
.facts dt { color: var(--soft); font-size: .82rem; }
.facts dd { margin: 0; font-size: 1.1rem; font-weight: 600; overflow-wrap: anywhere; }
.legend { gap: 4px 20px; margin: 8px 0; font-size: .92rem; }
.legend li { display: flex; align-items: center; gap: 7px; }
.charts { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.charts.two { grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
.charts.one { grid-template-columns: minmax(0, 1fr); }
figure { margin: 0; position: relative; container-type: inline-size; break-inside: avoid; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: 2px; }
.chart { display: block; width: 100%; height: auto; overflow: visible; touch-action: pan-y; }
.chart text { fill: var(--soft); font-size: 12px; }
.chart .title { fill: var(--ink); font-weight: 600; }
.chart .middle { text-anchor: middle; }
.chart .end { text-anchor: end; }
@container (min-width: 430px) { .chart text { font-size: 10.5px; } }
@container (min-width: 700px) { .chart text { font-size: 11px; } }
.chart path { fill: none; vector-effect: non-scaling-stroke; }
.chart .grid { stroke: var(--grid); }
.chart .tick, .chart .now { stroke: var(--soft); }
.chart .now, .chart .level { stroke-dasharray: 4 3; }
.chart .level { stroke: var(--soft); }
.chart .cursor { stroke: var(--soft); stroke-width: .7; visibility: hidden; }
.chart .ground { fill: var(--raised); }
.chart .heat { fill: var(--accent); }
.line { fill: none; stroke-width: 1.5; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.truth { stroke: var(--truth); fill: var(--truth); stroke-width: 1.4; }
.m0 { stroke: var(--m0); fill: var(--m0); } .m1 { stroke: var(--m1); fill: var(--m1); }
.m2 { stroke: var(--m2); fill: var(--m2); } .m3 { stroke: var(--m3); fill: var(--m3); }
.m4 { stroke: var(--m4); fill: var(--m4); } .m5 { stroke: var(--m5); fill: var(--m5); }
.m6 { stroke: var(--m6); fill: var(--m6); } .m7 { stroke: var(--m7); fill: var(--m7); }
.chart .dot, .dot { stroke: var(--ground); stroke-width: .8; } .chart .bar { stroke: none; }
.line.m0 { stroke-dasharray: 2 2.5; } .line.m1 { stroke-dasharray: 7 3; } .line.m6 { stroke-dasharray: 7 2 2 2; }
.line.tuned { stroke-width: 2.6; } .line.aside { stroke-dasharray: 4 3; stroke-width: 1.1; }
.line, .chart path.line { fill: none; }
.chart path.band, .band { stroke: none; fill: var(--m3); fill-opacity: .16; }
.chart path.band.level80, .band.level80 { fill-opacity: .26; }
.tip { position: absolute; pointer-events: none; background: var(--raised); border: 1px solid var(--line); z-index: 2;
  border-radius: 6px; padding: 6px 9px; font-size: .8rem; line-height: 1.35; white-space: nowrap; top: 0; left: 0;
  font-variant-numeric: tabular-nums; box-shadow: 0 2px 10px rgb(0 0 0 / .15); }
.tip b { display: block; }
.scroll { overflow-x: auto; margin: 10px 0 14px; }
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; min-width: 50%; }
caption { text-align: left; color: var(--soft); padding-bottom: 6px; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; } tbody th { font-weight: 400; } .numbers tbody th { white-space: nowrap; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; white-space: nowrap; padding: 5px 0 5px 18px; }
td.best { font-weight: 700; color: var(--accent); }
td small { color: var(--soft); font-weight: 400; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .88em; }
td code, dd { overflow-wrap: anywhere; }
pre { background: var(--raised); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px;
  overflow-x: auto; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--accent); padding: 4px 0; }
footer { max-width: 1120px; margin: 30px auto 0; padding: 14px 20px 40px; color: var(--soft); font-size: .88rem;
  border-top: 1px solid var(--line); }
.missing { border-left: 3px solid var(--line); padding-left: 12px; color: var(--soft); }
.swatch { flex: none; }
@media print { body { font-size: 11pt; } nav, .tip { display: none; } section { break-inside: auto; }
  .scroll { overflow: visible; } h2 { break-after: avoid; } }
"""

# Values under the pointer, and folded parts unfolded for the printer. Text goes in as text, never as markup.
SCRIPT = """
"use strict";
const shown = v => v === null || v === undefined ? "\\u2013" : Number(v.toPrecision(4)).toLocaleString("en");
const place = (x, i) => x.at ? x.at[i] : x.first + i * x.step;
function nearest(x, count, want) {
  if (!x.at) {
    const i = Math.round((want - x.first) / x.step);
    return i >= 0 && i < count && Math.abs(place(x, i) - want) <= Math.abs(x.step) ? i : -1;
  }
  let best = 0;
  for (let i = 1; i < count; i++) if (Math.abs(x.at[i] - want) < Math.abs(x.at[best] - want)) best = i;
  return best;
}
function head(plot, x) {
  if (!plot.date) return (plot.word || "step") + " " + shown(x);
  const at = new Date(Date.parse(plot.date + "Z") + x * plot.seconds * 1000);
  return at.toISOString().slice(0, 16).replace("T", " ");
}
function element(kind, words) {
  const made = document.createElement(kind);
  made.textContent = words;
  return made;
}
for (const svg of document.querySelectorAll("svg[data-plot]")) {
  const plot = JSON.parse(svg.dataset.plot), cursor = svg.querySelector(".cursor"), figure = svg.closest("figure");
  const tip = element("div", "");
  tip.className = "tip"; tip.hidden = true; figure.append(tip);
  const hide = () => { tip.hidden = true; cursor.style.visibility = "hidden"; };
  const show = event => {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const at = (event.clientX - box.left) / scale;
    if (at < plot.l - 4 || at > plot.r + 4) return hide();
    const want = plot.from + (at - plot.l) / (plot.r - plot.l) * (plot.to - plot.from);
    const rows = [];
    let x = null;
    for (const line of plot.lines) {
      const i = nearest(line.x, line.y.length, want);
      if (i >= 0) { x = place(line.x, i); rows.push(line.n + ": " + shown(line.y[i])); }
    }
    for (const band of plot.bands) {
      const i = nearest(band.x, band.y.length, want);
      if (i >= 0) rows.push(band.n + ": " + shown(band.y[i]) + " to " + shown(band.z[i]));
    }
    if (x === null) return hide();
    const where = plot.l + (x - plot.from) / ((plot.to - plot.from) || 1) * (plot.r - plot.l);
    cursor.setAttribute("x1", where); cursor.setAttribute("x2", where); cursor.style.visibility = "visible";
    tip.replaceChildren(element("b", head(plot, x)), ...rows.map(words => element("div", words)));
    tip.hidden = false;
    const x0 = where * scale, wide = tip.offsetWidth;
    const left = x0 + 14 + wide < box.width ? x0 + 14 : Math.max(0, x0 - wide - 14);
    tip.style.left = left + "px"; tip.style.top = 28 * scale + "px";
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
"""


class Best(str):
    """A cell that is the best of its column."""


def sealed(text: str) -> str:
    """Returns the hash by which a policy names a script or a style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; style-src {sealed(STYLE)}; script-src {sealed(SCRIPT)}; base-uri 'none'; form-action 'none'"
)


def document(title: str, head: str, sections: Sequence[tuple[str, str, str]], foot: str) -> str:
    """Returns a whole page. sections: (id, title, body) of each, markup but for the title; head and foot: markup."""
    links = "".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name, _ in sections)
    parts = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{escape(name)}</h2>{body}'
        f"</section>\n"
        for anchor, name, body in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<header><h1>{escape(title)}</h1>\n"
        f'{head}<nav aria-label="Parts of this page"><ul>{links}</ul></nav></header>\n<main>\n{parts}</main>\n'
        f"<footer>{foot}</footer>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def table(caption: str, head: Sequence[str], body: Iterable[Sequence[str]], kind: str = "") -> str:
    """Returns a table that scrolls by itself on a narrow screen. caption: text; cells: markup, those of a row's first
    column its heading. kind: 'numbers' or ''."""
    tops = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = []
    for first, *cells in body:
        marked = ((' class="best"' * isinstance(cell, Best), cell) for cell in cells)
        lines.append(f'<tr><th scope="row">{first}</th>{"".join(f"<td{of}>{cell}</td>" for of, cell in marked)}</tr>')
    top = f"<thead><tr>{tops}</tr></thead>" if any(head) else ""
    name = f'class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"'
    return (
        f'<div {name}><table class="{kind}"><caption>{escape(caption)}</caption>{top}<tbody>{"".join(lines)}</tbody>'
        f"</table></div>"
    )


def figures(charts: Iterable[str], caption: str = "", kind: str = "") -> str:
    """Returns charts side by side, each a figure, and under all of them what they show (text)."""
    parts = "".join(f"<figure>{chart}</figure>" for chart in charts)
    return f'<div class="charts {kind}">{parts}</div>' + (f"<p><small>{escape(caption)}</small></p>" if caption else "")


def legend(items: Iterable[tuple[str, str]]) -> str:
    """Returns a legend of (swatch, name)."""
    return f'<ul class="legend">{"".join(f"<li>{picture}{escape(name)}</li>" for picture, name in items)}</ul>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Returns what is to be known first, name by name."""
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(fact)}</dd></div>" for name, fact in pairs)
    return f'<dl class="facts">{cells}</dl>'


def folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def missing(words: str) -> str:
    """Returns a paragraph in a figure's place."""
    return f'<p class="missing">{escape(words)}</p>'
