"""Devices: the mesh, the table of sharding rules, constraints on activations, start-up.

Import the modules themselves: constraints, mesh, rules, processes.
"""
