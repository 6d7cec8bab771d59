"""One training run on several workers: a warm gang that goes on when it loses some of them, and the same on Ray Train.

Knows nothing of what is trained: a task on every worker trains, reports, and hands checkpoints to the driver, which
keeps them in the run; any worker that takes up the work starts from the last one.
"""
