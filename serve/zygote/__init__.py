"""The zygote: TorchServe workers forked from one process that has already imported everything they need.

A stock worker spends four seconds importing torch and transformers before it looks at its model. Here one process imports them
once, without threads and without touching CUDA, and forks a worker in some tens of milliseconds, whose memory is shared with
its siblings until written to.

    agent ── supervisor.Zygote ──starts, restarts──▶ zygote (`python -m serve.zygote`)
      │                                               │ fork                   ▲ Unix socket: argv, environment, directory,
      ▼                                               ▼                        │ standard streams
    TorchServe (JVM) ──starts, as if it were Python──▶ launcher.py ────────────┘
                                                      stays as long as its worker lives, and leaves with the worker's exit code

launcher    what TorchServe gets as `--python`, and what the agent starts its fetches with; anything else it starts the stock way
protocol    the messages on the socket, and why the worker can neither run unseen nor outlive those who watch it
zygote      the loop that imports, accepts and forks
fitness     which starts must be left to a new interpreter
worker      what the fork does to be indistinguishable from a stock worker
compiled    what forks import, compiled once
imports     what to import for the tasks and architectures that are served
supervisor  the part that lives in the agent
"""
