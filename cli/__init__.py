"""Commands for the person who runs the service: compare two models, fill the cache, check the set-up."""
