"""Published checkpoints: loaded as models, inspected, verified, and written for other libraries.

load               `load_pretrained`: loads any checkpoint as a model with its parameters
create             `create`: a model by name, random or published; the names
checkpoint_file    finds and opens the files of a checkpoint
hub                downloads checkpoints by their names on hubs
tensors            files of named tensors
formats            maps tensors to parameters, one file for each format
mapping            finds the source of every parameter before a tensor is read
reader             reads each parameter to the devices that hold it
consistency        checks images and parameters against a model's config
adaptation         adapts parameters to another image size or number of classes
run_checkpoint     a work directory of vit_jax as a pretrained model
preprocess         image preprocessing of the publisher's evaluation
preprocess_fields  validates the JSON that describes preprocessing
pixels             compares a run's pixel values with those of its `init_from`
inspection         describes a checkpoint as text
verification       compares outputs with those of the reference implementation
exports            writes models for other libraries
"""

from vit_jax.pretrained.load import Pretrained, load_pretrained

__all__ = ["Pretrained", "load_pretrained"]
