"""Everything that knows where the stack runs: on a Docker engine, or as plain processes beside this checkout.

Standard library only, because it runs before anything is installed: `python3 -m local <command>`; the Makefile calls it.
"""
