"""Text generation by an embedded archive on a stock TorchServe: what the slim form's figures are compared with."""

import logging

from locust.exception import StopUser

from loadtest.errors import BaselineNotRunning, LoadtestError
from loadtest.users.inference import InferenceUser

log = logging.getLogger("loadtest")


class EmbeddedInferenceUser(InferenceUser):
    """Asks as InferenceUser does, but the baseline, where the model is registered in an embedded form while the run lasts.

    The agent hands requests on to it, as it does for slim models, so both go through one more hop.
    """

    weight = 1
    kind = "embedded"
    path = "/baseline"

    def on_start(self) -> None:
        super().on_start()
        try:
            self.session.hold(self.plan.agent, self.model)
        except BaselineNotRunning as error:
            if self.session.alone(type(self)):
                raise self.session.abort(self.environment, error) from error
            log.warning("%s; this run goes on without users of it", error)
            raise StopUser(str(error)) from error
        except LoadtestError as error:
            raise self.session.abort(self.environment, error) from error
