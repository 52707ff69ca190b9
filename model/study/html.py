"""The bones of a page that holds everything itself: style, policy, sections, figures, table rows. All text is escaped.

``page`` and ``section`` take HTML as content; every other argument is plain text.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

_CSS = """
:root { color-scheme: light; }
body { margin: 0; background: #f6f7f9; color: #2b2f36; font: 15px/1.55 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 0 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
section { background: #fff; border: 1px solid #e3e6eb; border-radius: 10px; padding: 1.4rem 1.6rem; }
section { margin-top: 1.4rem; }
p { margin: .4rem 0 .8rem; } .faint { color: #626a76; }
figure { margin: 1rem 0 0; } figure > img { max-width: 100%; display: block; }
figcaption { color: #4d5560; font-size: .9rem; margin-top: .5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid #e9ecf0; } th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: nowrap; }
.scroll { overflow-x: auto; }
.query { border-top: 1px solid #e9ecf0; padding: .9rem 0 1rem; } .query q { font-weight: 600; }
.rank { display: inline-block; border-radius: 5px; padding: 0 .5rem; margin-left: .4rem; font-size: .85rem; }
.up { background: #dff2ea; color: #1d6b52; } .down { background: #fbe6df; color: #9a3b1c; }
.ways { display: grid; grid-template-columns: 1fr 1fr; gap: 1.4rem; margin-top: .6rem; }
.ways ol { list-style: none; margin: 0; padding: 0; } .ways h4 { margin: 0 0 .3rem; font-size: .9rem; color: #4d5560; }
.ways li { display: flex; align-items: center; gap: .6rem; margin-bottom: .35rem; }
.ways li span { min-width: 1.2rem; text-align: right; color: #626a76; }
.ways img { height: 58px; max-width: calc(100% - 2rem); border: 3px solid transparent; border-radius: 5px; }
.ways li.match img { border-color: #2e8b6f; } .ways li.match span { color: #1d6b52; font-weight: 700; }
"""

_HEAD = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'\">\n"
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
)


def page(title: str, sections: Sequence[str]) -> str:
    """A whole document. Its policy forbids scripts and everything that is not in the file itself."""
    body = "\n".join(sections)
    return (
        f"{_HEAD}<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body><main>\n{body}\n</main></body>\n"
        "</html>\n"
    )


def section(title: str, content: str) -> str:
    """A card with a heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def figure(svg: str, alt: str, caption: str) -> str:
    """A drawing with its explanation. As an image, so that the ids of several drawings do not meet."""
    source = base64.b64encode(svg.encode()).decode()
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/svg+xml;base64,{source}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def row(tag: str, cells: Sequence[str]) -> str:
    """A row of a table, of ``th`` or ``td`` cells."""
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
