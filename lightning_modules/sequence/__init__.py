"""Models of token sequences: one small transformer for every experiment that needs one, and tokenised synthetic tasks.

What watches or explains a training lives in `dynamics`, whatever the module is that trains.
"""
