"""Load shapes that the start form offers beside Locust's own ramp."""

from typing import Any

from locust import LoadTestShape

from loadtest.users.coldstart import ColdStartUser

STEP_SECONDS = 15.0


class StepsToSaturation(LoadTestShape):  # type: ignore[misc]  # Locust ships no types for it
    """1, 2, 4, … users, each for fifteen seconds, up to the form's number of users; then the run ends.

    Cold starts are left out: the others would pause for them.
    """

    abstract = False
    use_common_options = True
    runner: Any

    def tick(self) -> tuple[int, float, list[Any]] | None:
        options = self.runner.environment.parsed_options
        users = steps(options.num_users)
        place = int(self.get_run_time() / STEP_SECONDS)
        asking = [user for user in self.runner.user_classes if not issubclass(user, ColdStartUser)]
        return (users[place], users[place], asking) if place < len(users) and asking else None


def steps(most: int) -> list[int]:
    """1, 2, 4, … and `most` itself."""
    found = [1]
    while found[-1] * 2 < most:
        found.append(found[-1] * 2)
    return found + [most] * (most > 1)
