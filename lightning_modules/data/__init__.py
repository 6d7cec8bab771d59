"""Data that methods learn from: datasets made of environments, and the rules that split them.

What lives here: the nouns (`environments`), the built-in datasets of real digits (`digits`), a person's own image
folders (`folder`) and feature tables (`tables`), one way to load any of them (`catalog`), images with captions
(`captioned`, `icons`) and the pairs of features made of them (`pairs`), the split into "in" and "out" examples
(`splits`), and the step from arrays to tensors and mini-batches (`tensors`).

What must not: methods and networks; and torch stays out of every module but `tensors`, so that a launcher which plans
trials over a dataset need not wait for it.
"""
