"""The runs of a sweep: which they are, where they run, what became of them, and their table.

grids     the points of a sweep: grid, paired, chain, star, subset, durations
recipes   what the runs of a study have in common, on ImageNet-21k and on Fashion-MNIST
plan      the points of a config file's sweep() -> Runs: names, commands, configs, all checked
costs     what a run will take: parameters, FLOPs, memory
record    what a sweep knows of a run, in its work directory; has it finished?
attempt   one process of vit_jax.train, from its start to what its end means
start     the first lines of that process: its cores, and that it ends with its parent
local     the runs side by side on this machine
slurm     the runs as jobs
table     a row for each run and evaluation, made of the work directories
board     how far all of them are: a live table, or lines
"""
