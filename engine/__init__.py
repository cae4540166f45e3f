"""Text in, vectors out. Knows neither HTTP nor the service's settings."""

import os

# Read by libraries when they are imported, which is after this module. Tokenizers' own threads would compete with the
# lanes; progress bars and notes of the hub's client do not belong into a service's log, and hold addresses of files.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
# ONNX Runtime's wheels send reports of each model that is run to their maker, and keep them below HOME until then.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
