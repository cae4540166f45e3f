"""Commands for operators: check the setup, compare two models, download models into the cache."""

import os

from env_file import drop_library_variables

drop_library_variables(os.environ)  # before `console` imports a library that reads some
