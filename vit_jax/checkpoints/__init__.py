"""Saves and restores the checkpoints of a run.

store         a run's checkpoints, through Orbax; only this file and `preservation` import it
preservation  which checkpoints are kept
digests       checks that the arrays that are read are those that were saved
faults        classifies why a checkpoint cannot be read
load          the parameters of a run, by its work directory or one of its checkpoints
"""
