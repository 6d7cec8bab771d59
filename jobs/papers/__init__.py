"""One file a paper: its experiments as cells, its claims, its figures (the parts of such a file: jobs/claims.py).

What a paper computes stands in `lightning_modules`; here stands which cells are run and what is claimed of them.
"""
