"""Sweeps: plan runs, execute them, and collect their results.

grids     the points of a sweep: grid, paired, chain, star, subset, durations
recipes   shared config of the runs of a study, on ImageNet-21k and on Fashion-MNIST
plan      points of a config file's sweep() -> PlannedRuns: names, commands, checked configs
costs     checks a run; its parameters and FLOPs, without training it
durations how long runs take, from timed ones
pod       what each run would take on devices that are not here
dry_run   prints all of these
run       `sweep`: runs the runs
record    status of a run, in its work directory
attempt   one process of vit_jax.train: its start, its exit code, when to retry
start     wrapper of that process: sets its cores, ends it with its parent
local     runs in parallel on this machine
slurm     runs as Slurm jobs
table     a row for each run and evaluation, from the work directories
board     progress of all runs: a live table, or lines
listing   the runs below any folder: state, progress, evaluations
order     their order: by the numbers in their names
"""
