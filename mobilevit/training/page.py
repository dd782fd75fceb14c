"""The page that a report is written on: its frame and its style."""

from __future__ import annotations

# The policy lets the page load nothing and run nothing, whatever a class may be called.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}: training report</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1b1f24; --soft: #5b6470; --paper: #fff; --line: #dfe3e8;
  --right: 59 130 246; --wrong: 217 119 6;
}
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa4b0; --paper: #14171b; --line: #2d333b; }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  print-color-adjust: exact; -webkit-print-color-adjust: exact;
}
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: 0 0 .75rem; max-width: 46rem; }
header p, dd, figcaption, small, section > p { color: var(--soft); }
header p, small { overflow-wrap: anywhere; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr));
  gap: 1.25rem 1.5rem; margin: 1.5rem 0 0;
}
.tiles > div { border-top: 1px solid var(--line); padding-top: .6rem; break-inside: avoid; }
dt { font-weight: 600; font-size: .85rem; }
dd { margin: 0; font-size: .85rem; }
dd strong {
  display: block; color: var(--ink); font-size: 1.7rem; font-weight: 600; line-height: 1.3;
}
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1.5rem 2rem;
}
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { font-size: .85rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.scroll { overflow: auto; max-height: 36rem; border: 1px solid var(--line); border-radius: 6px; }
table {
  border-collapse: collapse;
  width: 100%;
  font-size: .85rem;
  font-variant-numeric: tabular-nums;
}
th, td { padding: .35rem .75rem; text-align: right; white-space: nowrap; }
tr > :first-child, tr > th { text-align: left; }
thead tr > th:not(:first-child) { text-align: right; }
tbody tr { border-top: 1px solid var(--line); }
tbody th { font-weight: 500; }
tbody th bdi {
  display: inline-block;
  max-width: 14rem;
  overflow: hidden;
  text-overflow: ellipsis;
  vertical-align: bottom;
}
thead { position: sticky; top: 0; background: var(--paper); }
.bar {
  background: linear-gradient(to right, rgb(var(--right) / .22) var(--v), transparent 0);
  min-width: 6rem;
}
.matrix { width: auto; }
.scroll:has(.matrix) { max-height: none; }
.matrix td {
  text-align: center;
  padding: 0 .3rem;
  min-width: 2.2rem;
  height: 2.2rem;
  border-left: 1px solid var(--line);
}
.matrix tbody th { position: sticky; left: 0; background: var(--paper); }
.matrix thead { position: static; }
.matrix thead th {
  vertical-align: bottom;
  text-align: center !important;
  padding: .5rem .2rem;
  font-weight: 500;
}
.matrix thead span {
  writing-mode: vertical-rl;
  transform: rotate(180deg);
  max-height: 9rem;
  overflow: hidden;
  display: inline-block;
}
.hit { background: rgb(var(--right) / var(--a)); }
.miss { background: rgb(var(--wrong) / var(--a)); }
.small { font-size: .7rem; }
.small tbody th { padding: 0 .5rem; }
.small td { min-width: 1rem; height: 1rem; padding: 0; }
.small td span { font-size: 0; }
.heat {
  display: block;
  width: min(100%, 36rem);
  image-rendering: pixelated;
  border: 1px solid var(--line);
}
.mistakes {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: 1.25rem; padding: 0; margin: 0; list-style: none; font-size: .85rem;
}
.mistakes li { break-inside: avoid; min-width: 0; overflow-wrap: anywhere; }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.mistakes img { display: block; width: 100%; border-radius: 4px; margin-bottom: .4rem; }
.mistakes p { margin: 0; line-height: 1.4; }
@media screen and (max-width: 32rem) { tbody th bdi { max-width: 7.5rem; } }
@media print { .scroll { overflow: visible; max-height: none; } }
"""
