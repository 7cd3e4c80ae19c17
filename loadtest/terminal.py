"""Tables for a terminal: headings stacked word by word, so that a dozen columns fit; columns with nothing in them left out."""

from loadtest.tables import Cell, Table

_GAP = "  "
_NOTE = "note"


def text(table: Table) -> str:
    """The table, and below it the notes of its rows."""
    columns = [
        (key, heading)
        for key, heading in table.columns
        if key != _NOTE and any(row[key] not in (None, "") for row in table.rows)
    ]
    # What is the same in all rows is said once, above them.
    (models,) = ({row.get("model") for row in table.rows},)
    title = f"{table.title}: {models.pop()}" if len(models) == 1 and None not in models else table.title
    if title != table.title:
        columns = [(key, heading) for key, heading in columns if key != "model"]
    cells = [[_shown(row[key]) for key, _ in columns] for row in table.rows]
    headings = [heading.split() if place else [heading] for place, (_, heading) in enumerate(columns)]
    height = max(map(len, headings))
    stacked = [[""] * (height - len(words)) + words for words in headings]
    widths = [max(map(len, [*words, *(row[i] for row in cells)])) for i, words in enumerate(stacked)]
    lines = [[words[level] for words in stacked] for level in range(height)] + cells
    body = [_GAP.join(_placed(cell, widths[i], i) for i, cell in enumerate(line)).rstrip() for line in lines]
    body.insert(height, "─" * (sum(widths) + len(_GAP) * (len(widths) - 1)))
    notes = dict.fromkeys(f"{row['what']}: {row[_NOTE]}" for row in table.rows if row.get(_NOTE))
    return "\n".join(["", title, "", *body, *notes])


def _placed(cell: str, width: int, place: int) -> str:
    """Names to the left, numbers to the right."""
    return cell.ljust(width) if place == 0 else cell.rjust(width)


def _shown(cell: Cell) -> str:
    if cell is None or cell == "":
        return "-"
    if isinstance(cell, str):
        return cell
    return f"{int(cell):,}" if cell == int(cell) else f"{cell:,}"
