"""What stops a load test before it can say anything about the stack.

LoadtestError
├── AgentUnreachable     nobody answers at AGENT_URL
├── AgentRefused         the agent wants an API key, or another one
├── ModelNotServed       that model or release is not known to the agent
├── BaselineNotRunning   an embedded start was asked for, and no stock TorchServe is there to do it
├── AgentBusy            another cold start is being measured on that agent
├── ColdStartFailed      the agent tried the start and it failed
└── InvalidOption        a field of the start form or of the command line
"""

from weightless.errors import WeightlessError


class LoadtestError(WeightlessError):
    """Base of what stops a load test on purpose."""


class AgentUnreachable(LoadtestError):
    """Nobody answers at AGENT_URL."""


class AgentRefused(LoadtestError):
    """The agent wants an API key, or another one."""


class ModelNotServed(LoadtestError):
    """That model or release is not known to the agent."""


class BaselineNotRunning(LoadtestError):
    """An embedded start was asked for, and no stock TorchServe is there to do it."""


class AgentBusy(LoadtestError):
    """Another cold start is being measured on that agent."""


class ColdStartFailed(LoadtestError):
    """The agent tried the start and it failed."""


class InvalidOption(LoadtestError):
    """A field of the start form or of the command line."""
