"""`python -m serve.agent`: run the agent. Exit status 2 for wrong settings, 3 for no usable GPU, 1 for any other failure."""

import logging
import sys

import uvloop

from serve.agent.app import run
from serve.agent.gpu import NoUsableGpu
from serve.agent.settings import AgentSettings
from weightless.errors import SettingsError, WeightlessError

SETTINGS_ARE_WRONG = 2
NO_USABLE_GPU = 3


def main() -> int:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s [%(levelname)-5s] agent - %(message)s", stream=sys.stdout
    )
    try:
        uvloop.run(run(AgentSettings.load()))
    except SettingsError as error:
        return _say(error, SETTINGS_ARE_WRONG)
    except NoUsableGpu as error:
        return _say(error, NO_USABLE_GPU)
    except WeightlessError as error:
        return _say(error, 1)
    return 0


def _say(error: Exception, status: int) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
