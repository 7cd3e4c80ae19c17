"""Whatever happens in whatever order, requests go only to what is registered, and in the end what is wanted is what is served.

Aliases move, canaries begin and end, releases turn out bad in every step, TorchServe dies, workers are lost, the store goes away
and clients come and go, in orders that hypothesis chooses and shrinks, on a fake node in virtual time.
"""

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve.agent import controller, health, lane, rollout, routing, tally
from serve.agent.controller import Controller
from serve.agent.desired import Wanted
from serve.agent.errors import ApiError
from serve.agent.routing import RoutingTable
from tests.fake_node import BAD, FakeNode, VirtualLoop, release
from weightless.modelfile import NodeSettings
from weightless.release import Alias, Canary

NAMES = ("v1", "v2", "v3", "v4")
NODE = NodeSettings(response_timeout_s=10, startup_timeout_s=20)
LONG_S = 120.0  # longer than a lost worker takes to be noticed, a drain and a start together

names = st.sampled_from(NAMES)
pauses = st.sampled_from([0.0, 0.01, 0.2, 0.55, 1.3, 2.5, 40.0])  # in the midst of a step, or after all of them


@contextlib.contextmanager
def fake_node(folder: Path, loop: VirtualLoop) -> Iterator[FakeNode]:
    """Everything that the agent reaches is the fake's, its clock too."""
    node = FakeNode(loop, folder, {name: release(name) for name in NAMES})
    clock = SimpleNamespace(monotonic=loop.time, time=loop.time)
    with contextlib.ExitStack() as stack:
        for module in (controller, lane, rollout, health, routing, tally):
            if hasattr(module, "time"):
                stack.enter_context(mock.patch.object(module, "time", clock))
        for module, name in (
            (rollout, "build_slim"), (rollout, "smoke_test"), (rollout, "alive"), (health, "alive"),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(module, name, getattr(node, name)))
        yield node


class OneModel(RuleBasedStateMachine):
    """One model on one node. `excused`: there is a reason why nothing answers now."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="states-"))
        self.loop = VirtualLoop()
        self.stack = contextlib.ExitStack()
        self.node = self.stack.enter_context(fake_node(self.folder, self.loop))
        self.table = RoutingTable(max_inflight=50, hold_s=5)
        self.route = self.table.route("m")
        metrics = SimpleNamespace(rollout=lambda model, result: None)
        slots = asyncio.Semaphore(2)
        self.controller = Controller("m", self.node.tools(), self.route, slots, metrics)  # type: ignore[arg-type]
        self.wanted: Wanted | None = None
        self.settings = NODE
        self.requests: list[asyncio.Task[None]] = []
        self.excused = True
        self.killed: set[str] = set()  # versions whose workers were
        self.running = self.loop.create_task(self.controller.run())

    @initialize()
    def begins(self) -> None:
        self.torchserve_comes()
        self.promote("v1", 40)

    # ---- what happens

    def tell(self, alias: Alias | None, then: float) -> None:
        self.wanted = None if alias is None else Wanted("m", alias, self.settings)
        self.controller.tell(self.wanted)
        self.passes(then)

    @rule(name=names, then=pauses)
    def promote(self, name: str, then: float) -> None:
        self.tell(Alias.of(self.node.releases[name]), then)

    @precondition(lambda self: self.wanted is not None)
    @rule(name=names, percent=st.sampled_from([1, 10, 50, 99]), then=pauses)
    def try_canary(self, name: str, percent: int, then: float) -> None:
        assert self.wanted is not None
        assert self.wanted.alias is not None
        canary = Canary.of(self.node.releases[name], percent)
        if not canary.same_as(self.wanted.alias):
            self.tell(self.wanted.alias.model_copy(update={"canary": canary}), then)

    @precondition(lambda self: self.wanted is not None and self.wanted.canary is not None)
    @rule()
    def end_canary(self) -> None:
        assert self.wanted is not None
        assert self.wanted.alias is not None
        self.tell(self.wanted.alias.model_copy(update={"canary": None}), 0)

    @precondition(lambda self: self.wanted is not None and self.wanted.canary is not None)
    @rule()
    def promote_canary(self) -> None:
        assert self.wanted is not None
        assert self.wanted.canary is not None
        assert self.wanted.canary.alias is not None
        self.promote(self.wanted.canary.alias.release, 0)

    @rule()
    def remove_alias(self) -> None:
        self.excused = True
        self.tell(None, 0)

    @rule(recreate=st.booleans())
    def node_settings(self, recreate: bool) -> None:
        self.settings = NODE.model_copy(update={"rollout": "recreate" if recreate else "blue-green"})
        self.excused = self.excused or recreate
        if self.wanted is not None:
            self.tell(self.wanted.alias, 0)

    @rule(name=names, where=st.sampled_from([None, *BAD]))
    def turns(self, name: str, where: str | None) -> None:
        """A release is bad from now on, or mended."""
        if where is None:
            self.node.bad.pop(name, None)
        else:
            self.node.bad[name] = where

    @rule(away=st.booleans())
    def store(self, away: bool) -> None:
        self.node.away = away

    @rule()
    def retry(self) -> None:
        self.controller.retry()

    @precondition(lambda self: self.node.up)
    @rule(soon=pauses)
    def torchserve_dies(self, soon: float) -> None:
        """At a moment that may be that of any step: what it is told, it is told before what was due then is done."""
        self.excused = True
        self.loop.call_later(soon, self.death)
        self.passes(soon)

    def death(self) -> None:
        if self.node.up:
            self.killed.clear()
            self.node.die()
            self.controller.torchserve(False)

    @precondition(lambda self: not self.node.up)
    @rule()
    def torchserve_comes(self) -> None:
        self.node.start()
        self.controller.torchserve(True)
        self.passes(0)

    @precondition(lambda self: self.node.versions)
    @rule(which=st.integers(0, 5))
    def worker_is_lost(self, which: int) -> None:
        self.excused = True
        versions = sorted(self.node.versions)
        self.killed = self.killed | {version := versions[which % len(versions)]}
        self.node.dead.add(self.node.versions[version].pid)

    @rule(seconds=st.sampled_from([0.1, 3.0, 25.0]), named=st.sampled_from([None, *NAMES]), count=st.integers(1, 5))
    def clients(self, seconds: float, named: str | None, count: int) -> None:
        self.requests += [self.loop.create_task(self.request(seconds, named)) for _ in range(count)]
        self.passes(0)

    async def request(self, seconds: float, named: str | None) -> None:
        """What the door does: admit, count, wait for the answer."""
        try:
            route = self.table.find("m", named)
            target = await self.table.admit(route, named)
            version, life = target.version, self.controller._life
            if version not in self.node.versions:
                self.node.wrong.append(f"{version} is not registered, and got a request")
            if named is not None and target.release != named:
                self.node.wrong.append(f"{named} was asked, {target.release} would answer")
            with self.table.busy(route, target):
                self.node.inflight[version] = self.node.inflight.get(version, 0) + 1
                try:
                    await asyncio.sleep(seconds)
                finally:
                    self.node.inflight[version] -= 1
                if life == self.controller._life and version not in self.node.versions:
                    self.node.wrong.append(f"{version} was unregistered under a request")
        except ApiError as error:
            if error.code not in (404, 503):
                self.node.wrong.append(f"refused with {error}")
        except asyncio.CancelledError:
            pass  # cut off: the door answers 503

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.0, 4.0, 30.0, 120.0]))
    def passes(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    # ---- what must be so at any time

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert self.node.wrong == []
        assert not self.running.done(), self.running

    @invariant()
    def what_answers_is_registered_and_only_that(self) -> None:
        for target in self.route.targets:
            assert target.version in self.node.versions, f"{target.version} is routed to, and not registered"
        if self.route.canary is not None:
            assert self.route.current is not None

    @invariant()
    def what_served_goes_on_serving(self) -> None:
        """Neither a switch nor a refused release takes the answering one away."""
        answering = self.route.answering
        well = answering is not None and answering.version not in self.killed
        if well and self.settings.rollout == "blue-green" and self.wanted is not None:
            self.excused = False
        assert self.excused or answering is not None

    # ---- what must be so in the end

    @rule()
    def settles(self) -> None:
        """With the machine well again, all is as wanted, and nothing else is left."""
        answered = self.route.answering is not None and not self.excused
        self.node.away = False
        if not self.node.up:
            self.torchserve_comes()
        self.passes(LONG_S)
        self.controller.retry()
        self.passes(LONG_S)
        current, canary = self.route.current, self.route.canary
        answers = {target.version for target in self.route.targets}
        lanes = (self.controller.current, self.controller.canary)
        # A release that hangs is tried again after a while, and this moment may be in the midst of it.
        tries = {lane.rollout.version for lane in lanes if lane.rollout is not None}
        assert answers <= set(self.node.versions) <= answers | tries
        assert self.route.inflight == 0
        assert self.route.held is None or tries
        assert current is None or self.node.holds == current.release, "workers would look for another tokenizer"
        if self.wanted is None:
            assert current is None
            return
        assert self.wanted.alias is not None
        wanted = self.wanted.alias.release
        if wanted not in self.node.bad:
            assert current is not None
            assert (current.release, current.down) == (wanted, None)
            assert self.controller.current.refusal is None
        elif answered and self.settings.rollout == "blue-green":
            assert self.route.answering is not None, "a refused release took the serving one with it"
        tried = self.wanted.canary
        if tried is None or current is None or self.settings.rollout == "recreate":
            assert canary is None
        elif tried.alias is not None and tried.alias.release not in self.node.bad:
            assert canary is not None
            assert (canary.release, canary.down, self.route.percent) == (tried.alias.release, None, self.wanted.percent)
            assert self.controller.canary.refusal is None

    def teardown(self) -> None:
        try:
            self.settles()
        finally:
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.loop.close()
            self.stack.close()
            shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


ANY_PACE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
FEW = settings(ANY_PACE, max_examples=100, stateful_step_count=30, derandomize=True)
MANY = settings(ANY_PACE, max_examples=2000, stateful_step_count=50)


@pytest.fixture
def model() -> Iterator[OneModel]:
    """A model whose v1 serves. Its end checks that all settles."""
    made = OneModel()
    made.begins()
    yield made
    made.teardown()


def test_what_serves_in_place_of_a_refused_release_comes_back_when_its_worker_is_lost(model: OneModel) -> None:
    model.turns("v2", "smoke")
    model.promote("v2", then=10)
    model.worker_is_lost(0)
    model.passes(60)
    assert model.route.answering is not None
    assert (model.route.answering.release, model.route.answering.version) == ("v1", "v1.2")
    assert model.controller.current.refusal is not None
    assert model.controller.current.refusal.release == "v2"


def test_nothing_stays_registered_when_a_model_with_a_canary_is_removed(model: OneModel) -> None:
    model.try_canary("v2", 50, then=10)
    model.clients(3.0, "v2", 2)
    model.remove_alias()
    model.passes(1)
    assert model.node.versions, "the canary still answers"
    model.passes(10)
    assert model.node.versions == {}


def test_a_removed_version_that_drains_is_unregistered_though_its_model_is_starting_again(model: OneModel) -> None:
    """TorchServe refuses to let its default version go while another is there, and this one answers nobody yet."""
    model.clients(25.0, None, 1)
    model.remove_alias()
    model.turns("v2", "hangs")
    model.passes(NODE.response_timeout_s - 2)
    model.promote("v2", then=5)
    assert set(model.node.versions) == {"v1", "v2"}, "v1's time is up, and v2 is not READY"
    model.turns("v2", None)
    model.passes(60)
    assert list(model.node.versions) == ["v2.2"]


def test_a_retry_during_the_start_of_a_canary_is_not_forgotten(model: OneModel) -> None:
    model.turns("v2", "smoke")
    model.promote("v2", then=10)
    model.turns("v2", None)
    model.try_canary("v3", 50, then=1.0)
    assert model.controller.canary.rollout is not None
    model.retry()
    model.passes(20)
    assert {target.release for target in model.route.targets} == {"v2", "v3"}


def test_a_store_that_was_away_for_hours_is_not_given_up(model: OneModel) -> None:
    model.store(True)
    model.promote("v2", then=3 * 3600)
    model.store(False)
    model.passes(10)
    assert model.route.answering is not None
    assert model.route.answering.release == "v2"


def test_a_model_that_does_not_fit_twice_has_no_canary(model: OneModel) -> None:
    model.try_canary("v2", 50, then=10)
    assert model.route.canary is not None
    model.node_settings(recreate=True)
    model.passes(30)
    assert model.route.canary is None
    assert model.controller.canary.refusal is not None
    assert "rollout: recreate" in model.controller.canary.refusal.message


def test_workers_of_a_promoted_canary_find_its_tokenizer(model: OneModel) -> None:
    model.passes(40)
    assert model.node.holds == "v1"
    model.try_canary("v2", 50, then=40)
    assert model.node.holds == "v1"
    model.promote_canary()
    model.passes(1)
    assert model.node.holds == "v2"


def test_any_order_of_events_ends_as_wanted() -> None:
    run(FEW)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_very_many_orders_of_events_end_as_wanted() -> None:
    run(MANY)


def run(how: settings) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(OneModel, settings=how)
