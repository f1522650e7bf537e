"""The trusted evaluator: SAE-Bench on a run's checkpoint, in a process of its own.

python -P -m agent.lab.evaluation RUN_DIR [RUN_DIR ...]
"""
