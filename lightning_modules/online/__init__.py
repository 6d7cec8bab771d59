"""Online domain generalization: a player picks parameters, an adversary reweights the groups, regret is what counts.

`extrapolation.py` holds the set of test distributions and the one-shot worst case over it, `groups.py` the group risks
and where parameters may lie, `players.py` and `adversaries.py` the two sides, `game.py` the game, `maxcut.py` why one
step of it can be NP-hard. Arrays carry the games side by side as their first axis, [S, ...].

Source: Rosenfeld, Ravikumar, Risteski, "An Online Learning Approach to Interpolation and Extrapolation in Domain
Generalization", AISTATS 2022, arXiv 2102.13128.
"""
