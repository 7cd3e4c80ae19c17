"""What the owner of the node allows a worker."""

from weightless.settings import Settings


class NodePolicy(Settings):
    """`allow_remote_code`: releases that ask for it may run Python from their model folder (ALLOW_REMOTE_CODE=1)."""

    allow_remote_code: bool = False
