"""What a loss curve hides: probes that attach to any training, and the tools they share.

A probe is a Lightning callback (`probe.py`) that measures a module while it trains and streams rows; `catalog.py` knows them by
name. `flat.py` sees a module's parameters as one vector, `curvature.py` has products with the Hessian and its top eigenvectors.
"""
