"""The handler of archives that carry their weights: what this project is measured against."""
