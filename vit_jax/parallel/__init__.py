"""Devices and processes.

mesh         the mesh of a config
rules        the table of sharding rules: parameter -> mesh axes
constraints  constraints on activations
compilation  the cache of compiled programs
processes    starts the processes of a run, and lets them agree
watch        ends a run that stalls, and names the process that stalled it
"""
