"""Checkpoints: a run's own, through Orbax.

store    what a run saves and restores
"""
