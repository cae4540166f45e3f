"""Reads what this process has counted, and its present state, from the running parts."""

import os
from collections.abc import Mapping
from typing import Final

import msgspec

from access.quotas import QuotaStore
from api.metric_answers import metrics_answer
from api.metric_types import CacheInfo, LimitMetrics, TextSources
from api.process_reports import Counts, ProcessReport, StuckModel
from assembly.running import RunningService
from config import Settings
from engine.loaded_facts import LoadedFacts
from engine.usage import Usage
from host.process_usage import ProcessUsage
from telemetry.metrics import Metrics

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(dict[str, LoadedFacts])


class ProcessReporter:
    """Reports this process, whether it is the only one or a worker."""

    def __init__(
        self,
        service: RunningService,
        settings: Settings,
        *,
        metrics: Metrics,
        quotas: QuotaStore,
    ) -> None:
        self._service = service
        self._cache_limits = settings.max_cached_models, settings.model_cache_ttl, settings.cleanup_interval
        self._metrics = metrics
        self._quotas = quotas

    def cache_info(self, names: list[str]) -> CacheInfo:
        """Return the answer about the models *names*, which are in memory."""
        return CacheInfo(names, len(names), *self._cache_limits)

    @property
    def loaded(self) -> list[str]:
        """Names of the models in memory of this process, least recently used first."""
        return list(self._service.parts.models.loaded)

    @property
    def stuck(self) -> list[StuckModel]:
        """Its model runs that do not end."""
        return [StuckModel(run.model, round(run.seconds, 3)) for run in self._service.parts.scheduler.stuck]

    def models(self) -> dict[str, LoadedFacts]:
        """Return the models in memory of this process, by name."""
        models = self._service.parts.models
        loaded = {name: models.find(name) for name in models.loaded}
        return {name: LoadedFacts.of(one, models.expires_at(name)) for name, one in loaded.items() if one is not None}

    def read(
        self, *, usage: ProcessUsage | None = None, with_models: bool = False, with_recent: bool = False
    ) -> ProcessReport:
        """Return the report of this process.

        Args:
            usage: what it takes, if that is asked for: reading it blocks.
            with_models: include facts of models.
            with_recent: include latest latencies: up to 2,048 numbers per endpoint.
        """
        parts = self._service.parts
        return ProcessReport(
            pid=os.getpid(),
            phase=self._service.lifecycle.phase,
            stuck=self.stuck,
            counts=self._counts(with_recent=with_recent),
            fingerprints=parts.models.fingerprints,
            models=_ENCODER.encode(self.models()) if with_models else b"",
            usage=usage,
        )

    def _counts(self, *, with_recent: bool) -> Counts:
        parts = self._service.parts
        state = parts.scheduler.state()
        answer = metrics_answer(
            self._metrics,
            state,
            parts.embedder.usage_by_model,
            (*self._service.web_accounts, parts.tokenizing.account, *parts.scheduler.accounts),
            cache_info=self.cache_info(self.loaded),
            uptime_s=self._service.lifecycle.uptime_s,
            loads=parts.models.load_state,
            results=self._service.results.metrics(
                _sources(parts.embedder.usage_by_model), held=parts.embedder.held_results
            ),
            limits=LimitMetrics(self._quotas.store, self._quotas.fallbacks),
        )
        return Counts(
            answer=answer,
            requests=self._metrics.counts(),
            runs=state.runs,
            busy_s=state.busy_s,
            recent_s=self._metrics.recent_s() if with_recent else {},
            exemplars=self._metrics.exemplars() if with_recent else {},
        )


def _sources(used: Mapping[str, Usage]) -> dict[str, TextSources]:
    return {name: TextSources(usage.cache.hit, usage.cache.miss, usage.cache.coalesced) for name, usage in used.items()}


def models_of(report: ProcessReport) -> dict[str, LoadedFacts]:
    """Return the models in memory of the worker with this report, by name."""
    return _DECODER.decode(report.models) if report.models else {}
