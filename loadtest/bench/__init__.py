"""`make bench`: every ratio that Weightless claims, measured in one run on the machine at hand.

experiment.py   what an experiment is, and what it writes into: samples, and ratios of their medians
node.py         the stack that is measured, started by the commands that a person types
measured.py     the model that is measured, and new releases of it: one shard changed
transfer.py     the bare transfer of a model by programs that copy files
workers.py      several workers of one slim MAR: their bytes, their memory
openloop.py     requests at times that were drawn beforehand, for swaps under load
fetch.py …      one experiment a file: its arms, and its ratios with the reach of each
results.py      results.json, the table on the terminal, and the page with plots
"""
