"""WHAT is learned: one folder a family of methods, one file a method, and `data/` beside them.

Nothing here knows Ray or Optuna: a method runs in a notebook, a plain Lightning Trainer or a worker alike.
What several families share stands on this floor.
"""
