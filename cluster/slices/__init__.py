"""Data-parallel steps over slices of a cluster that come and go, and that may compute wrongly without a word.

`controller.py` deals the shards of a step to the slices that live and sums their gradients in shard order, so that a run
that loses slices ends in the same bits; `corruption.py` decides when a step is computed again and who is to blame;
`faults.py` breaks slices on purpose; `goodput.py` has the arithmetic of interruptions.

`cluster.training` trains Lightning modules through torch's own collectives; here one controller sees every gradient.
"""
