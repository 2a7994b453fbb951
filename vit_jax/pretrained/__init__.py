"""Published checkpoints: loaded as models, inspected, verified, and written for other libraries.

load               `load_pretrained`: any checkpoint as a model with its parameters
checkpoint_file    the files of a checkpoint; `hub`: names on hubs
tensors            files of named tensors
formats            which tensor is which parameter, one file for each format
mapping            a source for every parameter, before a tensor is read
reader             reads each parameter to the devices where it belongs
adaptation         brings parameters to another image size or number of classes
run_checkpoint     a work directory of ours as a pretrained model
preprocess         images as the publisher evaluates; `preprocess_fields`: its JSON
pixels             compares a run's preprocessing with that of its `init_from`
inspection         describes a checkpoint as text
verification       compares outputs with those of the reference implementation
exports            writes models for other libraries
"""

from vit_jax.pretrained.load import Pretrained, load_pretrained

__all__ = ["Pretrained", "load_pretrained"]
