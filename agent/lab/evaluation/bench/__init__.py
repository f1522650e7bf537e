"""Our side of SAE-Bench: all that patches it or caches for it."""
