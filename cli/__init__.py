"""Commands for operators: check the setup, compare two models, download models into the cache."""
