"""Log setup and metrics. Knows nothing of the service."""

import os

from env_file import drop_library_variables

drop_library_variables(os.environ)  # before `log_setup` imports a library that reads some
