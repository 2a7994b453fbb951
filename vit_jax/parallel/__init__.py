"""Devices and processes.

mesh         the mesh of a config
rules        the table of sharding rules: parameter -> mesh axes
constraints  constraints on activations
compilation  the cache of compiled programs
processes    starts the processes of a run, and lets them agree
watch        ends a process that stands still, or fails while others wait for it
"""
