"""What a run saves, and what it restores.

store         a run's checkpoints, through Orbax; no other file imports it
preservation  which checkpoints are kept
digests       whether what was read is what was saved
faults        why a checkpoint cannot be read
load          the parameters of a run, by its work directory or one of its checkpoints
"""
