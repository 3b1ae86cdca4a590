"""Pieces of the page that are HTML of our own, and how they look."""

from __future__ import annotations

from html import escape

from pspfast.app.demo_training import Progress
from pspfast.app.segmented import Segmented
from pspfast.data import ClassList

STYLE = """
footer { display: none !important; }
.problem { margin: 0; padding: .6rem .9rem; border-left: .3rem solid #c62828; border-radius: .25rem;
  background: color-mix(in srgb, #c62828 14%, transparent); overflow-wrap: anywhere; }
.note { margin: 0; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: 0; padding: 0;
  list-style: none; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .45em;
  border: 1px solid color-mix(in srgb, currentColor 45%, transparent); border-radius: .2em;
  vertical-align: -.08em; }
.strip { display: flex; height: 1.5rem; margin-bottom: .75rem; border-radius: .3rem;
  overflow: hidden; }
/* Gradio shows a small image at its own size, by rules that are as specific. */
#overlay .image-frame { width: 100% !important; }
#overlay img { width: 100% !important; height: auto !important; max-height: 70vh !important;
  object-fit: contain !important; }
#scenes .grid-wrap { min-height: 0; height: auto; max-height: none; overflow: visible; }
#scenes .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.shares { width: 100%; border: 0 !important; border-collapse: collapse;
  font-variant-numeric: tabular-nums; }
.shares caption { text-align: left; padding-bottom: .3rem; }
/* Gradio draws lines between columns, by rules that are as specific. */
.shares tr { border: 0 !important; }
.shares tr th, .shares tr td { padding: .25rem .5rem .25rem 0; text-align: left; font-weight: 400;
  border: 0 solid color-mix(in srgb, currentColor 18%, transparent) !important;
  border-bottom-width: 1px !important; }
.shares thead tr th { font-weight: 600; }
.shares tr .number { text-align: right; white-space: nowrap; }
progress { width: 100%; height: 1rem; appearance: auto; accent-color: #f97316; }
"""


def problem(text: str) -> str:
    return f'<p class="problem" role="alert">{escape(text)}</p>'


def note(text: str) -> str:
    return f'<p class="note" role="status">{escape(text)}</p>'


def legend(found: Segmented, class_list: ClassList) -> str:
    """The colours of the classes that occur."""
    items = (
        f"<li>{class_list.swatch(i)}{escape(class_list.names[i])}</li>" for i in found.present()
    )
    return f'<ul class="legend" aria-label="Legend">{"".join(items)}</ul>'


def shares(found: Segmented, class_list: ClassList) -> str:
    """A strip of the shares, and their table, the largest first."""
    strip, rows = "", ""
    for i in found.present():
        name, part = escape(class_list.names[i]), 100 * found.counts[i] / found.counts.sum()
        colour = f"background:rgb{class_list.palette[i]}"
        strip += f'<span style="width:{part:.2f}%;{colour}" title="{name} {part:.1f} %"></span>'
        rows += (
            f'<tr><th scope="row">{class_list.swatch(i)}{name}</th>'
            f'<td class="number">{part:.1f}</td><td class="number">{found.counts[i]:,}</td></tr>'
        )
    return (
        f'<div class="strip" role="img" aria-label="Shares of the classes, as in the table">{strip}'
        '</div><table class="shares"><caption>Share of the image</caption><thead><tr>'
        '<th scope="col">class</th><th scope="col" class="number">%</th>'
        f'<th scope="col" class="number">pixels</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def progress(training: Progress) -> str:
    return (
        f'<progress value="{training.done:.3f}" max="1" aria-label="Training"></progress>'
        f'<p class="note" role="status">{escape(training.text)}</p>'
    )
