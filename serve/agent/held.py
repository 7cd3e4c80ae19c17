"""An embedded model that stays registered on the stock baseline, so that requests to it can be measured: `/baseline/<model>`.

PUT registers it (and builds its archive first, if need be), POST asks it, DELETE takes it away. For load tests only.
"""

import asyncio
import json
from typing import Any

import aiohttp
from aiohttp import web

from serve.agent.embedded import FORMS, Baseline, Forms
from serve.agent.errors import ApiError, invalid
from serve.agent.rollout import Tools
from weightless.errors import NotFound, WeightlessError
from weightless.release import Release

SUFFIX = "--embedded"
_START_S = 3600.0
_ANSWER_S = 600.0


class Held:
    """One registration for each model."""

    def __init__(self, tools: Tools, forms: Forms) -> None:
        self._tools = tools
        self._forms = forms
        self._held: dict[str, tuple[Release, str]] = {}
        self._one = asyncio.Lock()

    async def answer(self, method: str, model: str, body: bytes) -> web.Response:
        """One request.

        Raises:
            ApiError: 503 without a baseline, 404 for a model that is not held or has no release, 502 when it does not start.
        """
        if method == "POST":
            return await self._predict(model, body)
        baseline = await Baseline.of(self._tools.settings)
        try:
            if method == "PUT":
                return await self._hold(baseline, model, body)
            async with self._one:
                return await self._let_go(baseline, model)
        except NotFound as error:
            raise ApiError(404, "not_found", str(error)) from None
        except WeightlessError as error:
            raise ApiError(502, "start_failed", str(error)) from None

    async def _hold(self, baseline: Baseline, model: str, body: bytes) -> web.Response:
        try:
            wanted: dict[str, Any] = {"variant": "no-archive", "release": None} | json.loads(body or b"{}")
        except (ValueError, TypeError) as error:
            raise invalid("body", f"required a JSON object, found: {error}") from None
        form = wanted["variant"]
        if not isinstance(form, str) or form not in FORMS:
            raise invalid("variant", f"required one of {', '.join(FORMS)}, found {form!r:.40}")
        if not isinstance(wanted["release"], str | None):
            raise invalid("release", f"required the name of a release, found {wanted['release']!r:.40}")
        async with self._one:
            release = await asyncio.to_thread(self._forms.release, model, wanted["release"])
            if self._held.get(model) != (release, form) or not await self._registered(baseline, model, release):
                await self._let_go(baseline, model)
                built = await self._forms.embedded(release, form, baseline.store)
                async with baseline.management() as management:
                    await management.unregister(model + SUFFIX, release.name)  # of an agent that was there before us
                    await management.register(built.path.name, model + SUFFIX, 1, _START_S, wait=True)
                self._held[model] = (release, form)
        said = {"model": model, "release": release.name, "digest": release.digest, "variant": form}
        return web.json_response(said)

    async def _registered(self, baseline: Baseline, model: str, release: Release) -> bool:
        """The baseline may have been started anew since."""
        async with baseline.management() as management:
            return bool(await management.workers(model + SUFFIX, release.name))

    async def _let_go(self, baseline: Baseline, model: str) -> web.Response:
        held = self._held.pop(model, None)
        if held is not None:
            async with baseline.management() as management:
                await management.unregister(model + SUFFIX, held[0].name)
        return web.json_response({"model": model, "held": False})

    async def _predict(self, model: str, body: bytes) -> web.Response:
        if model not in self._held:
            raise ApiError(404, "not_held", f"required PUT /baseline/{model} first, found nothing held of that name")
        release, _ = self._held[model]
        server = str(self._tools.settings.baseline_inference_url).rstrip("/")
        url = f"{server}/predictions/{model}{SUFFIX}/{release.name}"
        headers, timeout = {"Content-Type": "application/json"}, aiohttp.ClientTimeout(total=_ANSWER_S)
        try:
            async with self._tools.session.post(url, data=body, headers=headers, timeout=timeout) as answer:
                said = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(502, "baseline", f"model {model}: no answer from the baseline: {error!r}") from None
        told = {"X-Weightless-Model": model, "X-Weightless-Release": release.name}
        return web.Response(body=said, status=answer.status, content_type="application/json", headers=told)
