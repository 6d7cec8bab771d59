"""Password schemas that a person runs in the head: how many leaked passwords until the next one is known?

This evaluates schemas. It is no password manager: it keeps no password and no key of anybody's.

`challenges.py` holds site names and letters, `schemas.py` what a schema is, `direct.py`, `hidden.py`, `pointer.py` and `own.py` the
schemas, `catalog.py` their names. Attacks see challenge-response pairs: `linear.py` solves equations modulo 2 and 5 (`echelon.py`),
`exact.py` goes through every key that is left, `solving.py` hands a schema to a maintained solver (`constraint.py`, `boolean.py`;
`matching.py` ties responses to it). `quality.py` has success curves, `security.py` the leaks until a response is determined, `module.py` the Lightning form.

Source: Rosenfeld, Vempala, Blum, "Human-Usable Password Schemas: Beyond Information-Theoretic Security", arXiv 1906.00029. Its body
was not at hand: what is our choice is marked so, and no figure here claims to be one of its tables.
"""
