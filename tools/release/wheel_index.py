"""Pages for pip to find the wheels of releases by:
``python -m tools.release.wheel_index RELEASES.json FOLDER``.

RELEASES.json is GitHub's list of releases, in pages as ``gh api --paginate --slurp`` has them.
Wheels of each version label (cu13 of 0.1.0+cu13) get an index of their own below FOLDER, as PEP 503
has it: ``pip install pspfast --extra-index-url https://…/FOLDER/cu13``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from html import escape
from pathlib import Path

PROJECT = "pspfast"
WHEEL = re.compile(PROJECT + r"-[^-]+\+(?P<label>cpu|cu\d+)-[^-]+-[^-]+-[^-]+\.whl")
PAGE = "<!DOCTYPE html>\n<html><head><title>{title}</title></head><body>\n{links}\n</body></html>\n"


def wheels_of(pages: list[list[dict]]) -> Iterator[tuple[str, str]]:
    """The label and the link of every published wheel; an error for one without a checksum."""
    for release in (release for page in pages for release in page if not release["draft"]):
        for asset in release["assets"]:
            name, given = asset["name"], asset.get("digest") or ""
            if (wheel := WHEEL.fullmatch(name)) is None:
                continue
            algorithm, _, digest = given.partition(":")
            if algorithm != "sha256" or not digest:
                raise ValueError(f"{name}: digest: expected sha256:…, got {given!r}")
            url = escape(f"{asset['browser_download_url']}#sha256={digest}")
            yield wheel["label"], f'<a href="{url}">{escape(name)}</a><br>'


def write_index(pages: list[list[dict]], folder: Path) -> list[str]:
    """Writes ``<folder>/<label>/pspfast/index.html``; returns the labels."""
    links = defaultdict(list)
    for label, link in wheels_of(pages):
        links[label].append(link)
    if not links:
        raise ValueError("releases: expected wheels among their assets, got none")
    for label, of_label in links.items():
        project = folder / label / PROJECT
        project.mkdir(parents=True, exist_ok=True)
        page = PAGE.format(title=f"{PROJECT} {label}", links="\n".join(of_label))
        (project / "index.html").write_text(page, encoding="utf-8")
        root = PAGE.format(title=label, links=f'<a href="{PROJECT}/">{PROJECT}</a>')
        (project.parent / "index.html").write_text(root, encoding="utf-8")
    return sorted(links)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("releases", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    try:
        pages = json.loads(options.releases.read_text(encoding="utf-8"))
        print(*write_index(pages, options.folder))
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
