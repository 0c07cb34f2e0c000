"""A few HTML pieces: everything that is not our own markup is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light; --ink: #22262a; --soft: #656b70; --line: #e2e2dd; --paper: #fbfbf9; --accent: #2f6f9f; }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem }
h1 { font-size: 1.9rem; margin: 0 0 .3rem } h2 { font-size: 1.25rem; margin: 2.8rem 0 .4rem }
p { max-width: 46rem; margin: .4rem 0 } .soft, figcaption { color: var(--soft); font-size: .9rem }
.row { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start }
figure { margin: .8rem 0; flex: 1 1 24rem; min-width: 0 } figure svg { max-width: 100%; height: auto }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line) }
td.n, th.n { text-align: right }
.wide { overflow-x: auto } code, pre { font: .84rem/1.45 ui-monospace, monospace }
pre { background: #f1f1ec; padding: .7rem .9rem; overflow-x: auto; border-radius: 6px; margin: .4rem 0 }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: .7rem 1rem; min-width: 10rem; background: #fff }
.tile b { display: block; font-size: 1.35rem } .tile span { color: var(--soft); font-size: .85rem }
.talk { border-left: 3px solid var(--line); padding-left: .9rem; margin: .9rem 0 } .talk p { margin: .15rem 0 }
.who { color: var(--soft); font-size: .8rem } details summary { cursor: pointer; color: var(--accent) }
"""


def page(title: str, body: Iterable[str]) -> str:
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def heading(text: str) -> str:
    return f"<h1>{escape(text)}</h1>"


def note(text: str) -> str:
    """A line in a softer colour."""
    return f"<p class='soft'>{escape(text)}</p>"


def section(title: str, lead: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(lead)}</p>{''.join(parts)}</section>"


def figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def row(*parts: str) -> str:
    return f"<div class='row'>{''.join(parts)}</div>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Cells that are numbers stand to the right; floats show up to three decimals."""
    rows = list(rows)
    assert all(len(line) == len(head) for line in rows), (head, rows)
    titles = "".join(f"<th{_align(None)}>{escape(title)}</th>" for title in head)
    lines = "".join(
        f"<tr>{''.join(f'<td{_align(cell)}>{escape(_show(cell))}</td>' for cell in line)}</tr>"
        for line in rows
    )
    return f"<div class='wide'><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>"


def tiles(named: Sequence[tuple[str, str]]) -> str:
    return (
        "<div class='tiles'>"
        + "".join(f"<div class='tile'><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in named)
        + "</div>"
    )


def talk(messages: Sequence[tuple[str, str]]) -> str:
    lines = "".join(
        f"<p><span class='who'>{escape(who)}</span><br>{escape(text)}</p>" for who, text in messages
    )
    return f"<div class='talk'>{lines}</div>"


def folded(title: str, *parts: str) -> str:
    """Shown when it is clicked."""
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>"


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def _align(cell: object) -> str:
    return " class='n'" if isinstance(cell, int | float) and not isinstance(cell, bool) else ""


def _show(cell: object) -> str:
    if cell is None:
        return "–"
    return f"{cell:,.3f}".rstrip("0").rstrip(".") if isinstance(cell, float) else str(cell)
