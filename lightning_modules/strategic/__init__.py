"""Strategic classification: people see a linear classifier and move to be accepted, at a cost the learner does not know.

`costs.py` holds what a move costs, `cost_sets.py` the costs that are possible, `responses.py` what people do and the
losses that foresee it, `worst_case.py` the worst cost for given scores, `solvers.py` the minimax solvers, many problems
at once, `linear_program.py` the exact optimum for small ones, `classifier.py` the Lightning module, `baselines.py` what
it is compared with, `misestimation.py` what a small error about the cost does. Scores are s = w.x + b, accepted where s >= 0; labels are -1 and +1.

Source: Rosenfeld, Rosenfeld, "One-Shot Strategic Classification Under Unknown Costs", ICML 2024, arXiv 2311.02761. Its text was
not at hand: what is derived here is marked so, and nothing here claims to be a figure of that paper.
"""
