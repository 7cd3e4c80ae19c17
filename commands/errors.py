"""What goes wrong between a command and the agent; the rest is `weightless.errors`."""

from weightless.errors import WeightlessError


class AgentUnavailable(WeightlessError):
    """The agent does not answer, or not like an agent."""


class AgentRefused(WeightlessError):
    """The agent answered with an error, whose message this carries."""


class RolloutFailed(WeightlessError):
    """The alias moved, but the node does not serve what it names."""
