"""The handler of archives that carry their weights: what this project is measured against."""

START_HEADER = "X-Weightless-Start"
"""In each answer of such a worker: `{"pid", "began", "phases"}` of its start. The handler, packed alone, has a copy of the name."""
