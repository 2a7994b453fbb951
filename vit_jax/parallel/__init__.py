"""Devices and processes.

mesh         the device mesh of a config
rules        the table of sharding rules: parameter -> mesh axes
constraints  sharding constraints on activations
xla_options  named sets of XLA's options for the train step
compilation  the cache of compiled programs
simulated    threads for simulated CPU devices
launchers    finds the other processes of a run: what torchrun, mpirun, srun, GKE and others leave
rendezvous   they wait for each other; if one never arrives, all end and say which
processes    joins the processes of a run, exchanges messages, handles stop signals
watch        watchdog: ends a process that is stalled, or that fails while others wait for it
"""
