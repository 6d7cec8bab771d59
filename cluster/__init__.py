"""WHERE work runs: Ray.

Here live the trial and its identity, the connection to Ray, the executor that runs a plan of trials on warm workers,
the store that keeps every result as Arrow, and progress. Nothing here knows a method, a dataset or Optuna.
"""
