"""One file a headline figure: ours and the peer's in one run, a table, then one JSON line a figure.

Each runs from the repository's root as `python benchmarks/NAME.py`, shorter and rougher with `--quick`. What is measured
lives in the four packages; nothing here is imported by them.
"""
