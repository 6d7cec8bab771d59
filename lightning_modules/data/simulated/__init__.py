"""The structural equation models of papers as environments: laws one can sample from, and whose optimum is known.

One file a model. Only numpy, no network and no training: what is learned on a model stands with its method.
"""
