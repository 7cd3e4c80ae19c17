"""`make bench`: every ratio that Weightless claims, measured in one run on the machine at hand.

experiment.py   what an experiment is, and what it writes into: samples, and ratios of their medians
node.py         the stack that is measured, started by the commands that a person types
fetch.py …      one experiment a file: its arms, and its ratios with the reach of each
results.py      results.json, the table on the terminal, and the page with plots
"""
