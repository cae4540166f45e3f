"""Turns texts into vectors. Knows neither HTTP nor the service's settings."""

import os

from env_file import drop_library_variables

drop_library_variables(os.environ)
# Libraries read these variables when they are imported, which is after this module.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads would compete with the lanes
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the service's log contains only events, and
os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # the messages of the hub's client contain URLs of files
# ONNX Runtime's wheels report each model that is run to their maker, and store the reports below HOME until then.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
