"""The page of an evaluation: one HTML file that needs no other and runs no script."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from pspfast.data import ClassList
from pspfast.evaluation.examples import Example
from pspfast.evaluation.report_style import STYLE
from pspfast.scores import MOST_NUMBERED_CLASSES

_MOST_CONFUSIONS = 10

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>Evaluation</h1>
<p class="facts">$facts</p>
<dl class="overall">$overall</dl>
<h2>Classes</h2>
$classes
<h2>Confusion matrix</h2>
$confusion
<h2>Most frequent confusions</h2>
$confusions
$examples
<h2>Options</h2>
$options
</main>
</body>
</html>
""")

_OVERALL = {
    "mIoU": "mean IoU",
    "mAcc": "mean accuracy",
    "pixel_acc": "pixel accuracy",
    "mIoU_absent_0": "mean IoU, absent classes as 0",
    "mAcc_absent_0": "mean accuracy, absent classes as 0",
}


def report_page(
    record: dict[str, Any], class_list: ClassList, examples: Sequence[Example], confusion: bytes
) -> str:
    """The page.

    Every score is in a ``data`` element, whose value is the number of the record as Python writes
    it.

    Args:
        record: what ``scores.json`` holds, see ``make_record``.
        class_list: the classes.
        examples: the best and the worst images.
        confusion: PNG file of the confusion matrix, shown where a table would be too large.
    """
    checkpoint, versions = record["options"]["checkpoint"], record["versions"]
    count = len(record["images"])
    facts = (
        f"{checkpoint}, scored on {count} image{'' if count == 1 else 's'} by pspfast "
        f"{versions['pspfast']} with torch {versions['torch']} on {record['device']}"
    )
    overall = (
        f"<div><dt>{label}</dt><dd>{_percent(record['scores'][name])}</dd></div>"
        for name, label in _OVERALL.items()
    )
    return _PAGE.substitute(
        title=escape(f"Evaluation of {Path(checkpoint).name}"),
        style=STYLE,
        facts=escape(facts),
        overall="\n".join(overall),
        classes=_classes(record, class_list),
        confusion=_confusion(record["confusion"], class_list.names, confusion),
        confusions=_confusions(record["confusion"], class_list.names),
        examples="\n".join(_examples(examples)),
        options=_table(
            "Options of the evaluation",
            ["option", "value"],
            ([_head(name), f"<td>{escape(str(v))}</td>"] for name, v in record["options"].items()),
        ),
    )


def _classes(record: dict[str, Any], class_list: ClassList) -> str:
    rows = []
    for i, name in enumerate(class_list.names):
        scores = record["classes"][name]
        pixels = f'<td class="number"><data value="{scores["pixels"]}">{scores["pixels"]:,}</data>'
        head = _head(name, class_list.swatch(i))
        rows.append([head, _bar(scores["IoU"]), _bar(scores["acc"]), f"{pixels}</td>"])
    caption = "IoU and accuracy in percent, and labelled pixels; – where a class does not occur"
    return _table(caption, ["class", "IoU", "accuracy", "pixels"], rows, "classes")


def _confusion(counts: list[list[int]], names: Sequence[str], picture: bytes) -> str:
    caption = "Each row: where the pixels of a label were predicted, in percent"
    if len(names) > MOST_NUMBERED_CLASSES:
        return (
            f"<figure>{_image('png', picture, 'Confusion matrix, labels in rows')}"
            f"<figcaption>{caption}</figcaption></figure>"
        )
    rows = []
    for row, (name, line) in enumerate(zip(names, counts, strict=True)):
        cells = []
        for column, count in enumerate(line):
            share = count / sum(line) if count else 0
            # The full colour would leave too little contrast to the number.
            style = f"--kind:var(--{'hit' if row == column else 'miss'});--part:{60 * share:.1f}%"
            data = f'<data value="{count}">{_number(share)}</data>'
            cells.append(f'<td class="number cell" style="{style}">{data}</td>')
        rows.append([_head(name), *cells])
    return _table(caption, ["label \\ prediction", *names], rows, "confusion")


def _confusions(counts: list[list[int]], names: Sequence[str]) -> str:
    wrong = [
        (count, row, column)
        for row, line in enumerate(counts)
        for column, count in enumerate(line)
        if count and row != column
    ]
    if not wrong:
        return "<p>None: every pixel was predicted as its label says.</p>"
    rows = [
        [
            _head(names[row]),
            f"<td>{escape(names[column])}</td>",
            f'<td class="number">{count:,}</td>',
            f'<td class="number">{_number(count / sum(counts[row]))}</td>',
        ]
        for count, row, column in sorted(wrong, reverse=True)[:_MOST_CONFUSIONS]
    ]
    caption = "Pixels of a label that were predicted as another class"
    return _table(caption, ["label", "predicted as", "pixels", "% of the label"], rows)


def _examples(examples: Sequence[Example]) -> Iterable[str]:
    for is_best, title in ((True, "Best images"), (False, "Worst images")):
        chosen = [example for example in examples if example.is_best == is_best]
        if not chosen:
            continue
        yield f"<h2>{title}</h2>\n<p>By the mean IoU of the classes that occur in the image.</p>"
        for example in chosen:
            name = Path(example.name).name
            pictures = (
                f"<figure>{_image('jpeg', data, f'{kind} of {name}')}"
                f"<figcaption>{kind}</figcaption></figure>"
                for kind, data in example.pictures.items()
            )
            yield (
                f'<section class="example"><h3>{escape(example.name)}</h3>'
                f"<p>mean IoU {_percent(example.score.mean_iou)}, pixel accuracy "
                f"{_percent(example.score.pixel_accuracy)}</p>"
                f'<div class="pictures">{"".join(pictures)}</div></section>'
            )


def _table(
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = ""
) -> str:
    """A table that scrolls by itself where the page is narrow."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table class="{kind}"><caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _head(text: str, before: str = "") -> str:
    return f'<th scope="row">{before}{escape(text)}</th>'


def _bar(score: float | None) -> str:
    width = 0 if score is None else 100 * score
    return f'<td class="bar" style="--part:{width:.1f}%">{_percent(score)}</td>'


def _percent(score: float | None) -> str:
    return "–" if score is None else f'<data value="{score!r}">{_number(score)}</data>'


def _number(share: float) -> str:
    return f"{100 * share:.1f}"


def _image(kind: str, data: bytes, alternative: str) -> str:
    source = f"data:image/{kind};base64,{b64encode(data).decode()}"
    return f'<img src="{source}" alt="{escape(alternative)}">'
