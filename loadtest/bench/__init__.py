"""Benchmarks: what this project does, over what others do, paired in one run on the machine at hand."""
