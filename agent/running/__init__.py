"""Processes and machines: what runs an experiment or the evaluator, under which limits."""
