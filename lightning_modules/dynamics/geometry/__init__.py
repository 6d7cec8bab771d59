"""Whether a model's memory of a graph is a table or a map: cosines, spectra, and two models of either kind.

`node2vec.py` lays a graph out by its neighbours alone, `associative.py` keeps it as a table, `spectrum.py` has the eigenvectors that
explain the layout; `cosines.py` and `recall.py` measure, `probes.py` does so during a training.
"""
