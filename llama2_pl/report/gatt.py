"""The report's section on Ghost Attention: is the instruction kept, and is it looked at."""

from __future__ import annotations

from llama2_pl.report import figures, page


def ghost_attention(results: dict) -> str:
    """Table 30 and figure 10 of the paper, as far as they were measured."""
    kept = results.get("gatt")
    if not kept:
        return ""
    charts = [
        page.figure(
            figures.persistence(kept),
            "Answers that keep an instruction given once, in the first turn, 95 % intervals (as Table 30).",
        )
    ]
    looks = results.get("gatt_attention")
    if looks:
        caption = "Largest attention weight on the system message while an answer is written, 95 % intervals."
        figure = figures.bands(looks["by_turn"], x_label="turn", y_label="attention to the instruction")
        charts.append(page.figure(figure, caption))
    turns = sorted({turn for by_turn in kept.values() for turn in by_turn}, key=int)
    lines = [[name, *(_share(by_turn.get(turn)) for turn in turns)] for name, by_turn in kept.items()]
    return page.section(
        "Ghost Attention",
        "Ghost Attention should hold an instruction over the turns where plain SFT forgets it.",
        page.row(*charts),
        page.table(["model", *(f"turn {turn}" for turn in turns)], lines),
        _maps(looks) if looks else "",
    )


def _share(row: dict | None) -> str:
    return "–" if row is None else f"{row['mean']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"


def _maps(looks: dict) -> str:
    highest = max(
        value for rows in looks["maps"].values() for row in rows for value in row if value is not None
    )
    drawn = [
        page.figure(
            figures.heat_map(rows, step=looks["bin"], mark=looks["system"], highest=highest),
            f"{name}: largest weight over all layers and heads with which a token (down) reads another (across), "
            f"{looks['bin']} neighbouring tokens to a square (as Fig. 10). Dashed: the system message.",
        )
        for name, rows in looks["maps"].items()
    ]
    messages = [(message["role"], message["content"]) for message in looks["dialog"]]
    return page.row(*drawn) + page.folded("the dialogue that was read", page.talk(messages))
