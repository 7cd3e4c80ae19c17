"""What the make targets call: `python -m commands <command>`.

They talk to the agent's HTTP API and to the two buckets, so they neither know nor care which engine runs the stack.
Tables on a terminal, plain columns when piped, JSON with --json; one clear error and status 1 when something is wrong.
"""
