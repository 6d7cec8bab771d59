"""What a person launches: one file a command, each also `python -m jobs.NAME`; they put the other three folders together.

`import jobs` and `shiftlab --help` import neither torch nor ray; what is shared by several commands stands in
`command.py` (options, errors, exit codes) and `report/` (everything a person reads of a run).
"""
