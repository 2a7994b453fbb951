"""Published checkpoints: loaded as models, inspected, verified, and written for other libraries.

model              `Pretrained`: a model with its parameters; predictions, features, attention
load               `load_pretrained`: loads any checkpoint as such a model
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
image_inputs       what a user calls images: paths, Pillow images, pixels
preprocess         image preprocessing of the publisher's evaluation
preprocess_fields  validates the JSON that describes preprocessing
prediction         the classes of an image
class_names        the names of a model's outputs
imagenet           the names of ImageNet's classes
pixels             compares a run's pixel values with those of its `init_from`
inspection         describes a checkpoint as text
verification       compares outputs with those of the reference implementation
exports            writes models for other libraries
"""

from vit_jax.pretrained.load import load_pretrained
from vit_jax.pretrained.model import Pretrained

__all__ = ["Pretrained", "load_pretrained"]
