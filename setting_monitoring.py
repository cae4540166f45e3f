"""The settings of the log, the metrics, and what answers say about themselves."""

from pydantic import Field
from pydantic_settings import BaseSettings

from setting_types import MAX_COUNT, LogClient, LogFormat, LogLevel


class MonitoringSettings(BaseSettings):
    """The part of `config.Settings` that operators see the service by."""

    debug: bool = Field(default=False, description="Log at DEBUG level, regardless of LOG_LEVEL.")
    log_level: LogLevel = Field("INFO", description="Lowest level that is logged.")
    log_format: LogFormat = Field(
        "auto", description="json (one object per line), console, or auto: console on a terminal, otherwise json."
    )
    log_client: LogClient = Field(
        "name",
        description="Who called, in the log: name (of the key or token), address (of the network), both or none.",
    )
    slow_request_seconds: float = Field(
        5,
        ge=0,
        le=MAX_COUNT,
        allow_inf_nan=False,
        description="Seconds after which a request is logged as slow. The client's own delays do not count. 0: never.",
    )
    enable_metrics: bool = Field(default=True, description="Serve GET /metrics. If false, it answers 403.")
    enable_tracing: bool = Field(default=False, description="Send traces with OpenTelemetry. Needs the extra tracing.")
    server_timing: bool = Field(
        default=True, description="Say in the header Server-Timing where the time of a request went."
    )

    @property
    def lowest_level(self) -> str:
        """The lowest level that is logged."""
        return "DEBUG" if self.debug else self.log_level
