"""What runs in the TorchServe image: the agent (front door and supervisor of its node) and the zygote (forks workers)."""

__version__ = "0.1.0"
