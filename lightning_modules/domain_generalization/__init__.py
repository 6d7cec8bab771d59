"""Domain generalization: train on several environments, predict in one never seen.

One file a method, found by its name (`group_dro.py` holds `GroupDRO`). A method is a class that derives from `Method`
(method.py) with a frozen `Hyperparameters` dataclass and its objective, a pure function; nothing needs registering.
`module.py` trains one as a Lightning module, `pack.py` many of equal shape at once as another.
"""
