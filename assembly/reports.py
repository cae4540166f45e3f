"""Collects what `/health` and `/metrics` report from the running parts, when a request asks for it."""

import asyncio
from typing import Protocol, runtime_checkable

from litestar.response.base import ASGIResponse

from access.quotas import QuotaStore
from api.answer_formats import accepted_text_format
from api.answer_types import CacheInfo
from api.build_answers import metrics_answer
from api.metric_types import (
    LimitMetrics,
    MetricsAnswer,
)
from assembly.lifecycle import Lifecycle
from assembly.running import RunningService
from config import Settings
from engine.errors import MetricsDisabledError
from telemetry.metrics import Metrics
from web.large_body_queue import LargeBodyQueue
from web.problems import known_codes
from web.responses import json_answer


class CacheReport:
    """Reports the models in memory and the limits beyond which they are evicted."""

    def __init__(self, service: RunningService, settings: Settings) -> None:
        self._service = service
        self._limits = settings.max_cached_models, settings.model_cache_ttl, settings.cleanup_interval

    def read(self) -> CacheInfo:
        loaded = list(self._service.parts.models.loaded)
        return CacheInfo(loaded, len(loaded), *self._limits)


@runtime_checkable
class MetricsReport(Protocol):
    """Answers `GET /metrics`."""

    async def answer(self, accept: str | None) -> ASGIResponse:
        """Answer in the format that the *accept* header prefers: JSON, or text for Prometheus."""
        ...


class NoMetricsReport:
    """Rejects `GET /metrics`: the service runs with ENABLE_METRICS=false."""

    async def answer(self, accept: str | None) -> ASGIResponse:
        """Reject the request.

        Raises:
            MetricsDisabledError: always.
        """
        del accept
        raise MetricsDisabledError


class FullMetricsReport:
    """Answers `GET /metrics` with the metrics of all parts."""

    def __init__(
        self,
        service: RunningService,
        *,
        cache: CacheReport,
        metrics: Metrics,
        quotas: QuotaStore,
        large_bodies: LargeBodyQueue,
        max_queue_s: float,
        version: str,
    ) -> None:
        self._service = service
        self._cache = cache
        self._metrics = metrics
        self._quotas = quotas
        self._large_bodies = large_bodies
        self._max_queue_s = max_queue_s
        self._version = version

    async def answer(self, accept: str | None) -> ASGIResponse:
        parts, lifecycle = self._service.parts, self._service.lifecycle
        content = metrics_answer(
            self._metrics,
            parts.scheduler.state(),
            parts.embedder.usage_by_model,
            (self._large_bodies.account, parts.tokenizing.account, *parts.scheduler.accounts),
            cache_info=self._cache.read(),
            uptime_s=lifecycle.uptime_s,
            loads=parts.models.load_state,
            limits=LimitMetrics(self._quotas.store, self._quotas.fallbacks),
        )
        text_format = accepted_text_format(accept)
        if text_format is None:
            return json_answer(content)
        return await asyncio.to_thread(self._text, text_format, content, lifecycle)

    def _text(self, text_format: str, content: MetricsAnswer, lifecycle: Lifecycle) -> ASGIResponse:
        """Write the same numbers for Prometheus. Blocks: the first call imports the library that writes them."""
        from api.prometheus import Families, text_answer  # noqa: PLC0415 - 0.1 s of import, needed for Prometheus only

        families = Families(
            answer=content,
            latencies=self._metrics.latencies(),
            fingerprints=self._service.parts.models.fingerprints,
            max_queue_s=self._max_queue_s,
            version=self._version,
            is_ready=lifecycle.is_healthy,
            error_codes=known_codes(),
        )
        return text_answer(text_format, families)
