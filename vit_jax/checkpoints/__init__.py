"""Checkpoints: what a run saves, and what another run or a prediction takes from it.

store    a run's own checkpoints, through Orbax
load     the parameters of a run, by its work directory or one of its checkpoints
"""
