"""Checkpoints: what a run saves, and what another run or a prediction takes from it.

store         a run's own checkpoints, through Orbax
digests       is what was read what was saved? faults: if not, why
load          the parameters of a run, by its work directory or one of its checkpoints
inherit       what a run takes from the checkpoint of init_from
pixels        are its pictures prepared as that checkpoint's were?

pretrained    load_pretrained: any published checkpoint as a model
foreign       its files; tensors/: files of named tensors; hub: names
formats/      which tensor is which parameter; plan: for all of them, before one is read
reader        parameters, read where they will lie; adaptation: for another size or head
preprocess    how its publisher prepares pictures
own           a work directory as a pretrained model
inspection    what a checkpoint is, as text
verification  is what was loaded right?
exports/      models written for others
"""
