"""How the page of an evaluation looks: light and dark, narrow and wide, and on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --text: #1b1f24; --faint: #59636e; --line: #d5dae0; --bar: #a9cdf2;
  --hit: #2e8b57; --miss: #d9622b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --text: #e6e9ed; --faint: #9aa4af; --line: #343b43; --bar: #24507d;
    --hit: #2f9e63; --miss: #c9582a;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); line-height: 1.5;
  font-family: system-ui, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { margin: 0 0 .25rem; font-size: 1.8rem; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.25rem; }
h3 { margin: 0; font-size: 1rem; }
h3, .facts, td { overflow-wrap: anywhere; }
.facts, .example p, caption, figcaption { color: var(--faint); }
.facts, .example p { margin: 0 0 .5rem; }
.overall { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0 0; }
.overall div { flex: 1 1 10rem; padding: .75rem 1rem; border: 1px solid var(--line);
  border-radius: .5rem; }
dt { color: var(--faint); font-size: .85rem; }
dd { margin: 0; font-size: 1.5rem; }
dd data::after, .example p data::after { content: " %"; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .5rem; text-align: left; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
th { font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 400; }
.number { text-align: right; white-space: nowrap; }
.classes { width: 100%; }
.classes th:last-child { text-align: right; }
.bar { width: 35%; min-width: 7rem; background-clip: content-box;
  background-image: linear-gradient(var(--bar), var(--bar)); background-origin: content-box;
  background-size: var(--part) 100%; background-repeat: no-repeat; }
.bar data { padding-left: .3rem; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em;
  border: 1px solid var(--faint); border-radius: .2em; vertical-align: -.08em; }
.confusion thead th { vertical-align: bottom; }
.confusion tbody th, .confusion th:first-child { position: sticky; left: 0;
  background: var(--ground); }
.cell { background: color-mix(in srgb, var(--kind) var(--part), transparent); }
.example { margin: 0 0 1.75rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr));
  gap: .75rem; }
figure { margin: 0; }
img { display: block; max-width: 100%; border-radius: .3rem; }
.pictures img { width: 100%; }
"""
