"""Attacks on a study by its own experiments: what each does, how one sees that it has done it, and its trial."""
