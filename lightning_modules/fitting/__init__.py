"""One training run over one or many processes, that can be saved, paused and continued: shares, loaders, checkpoints, checks.

What is trained lives beside this folder; where the processes come from is no concern of it.
"""
