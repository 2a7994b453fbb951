"""Formats of published checkpoints: each maps tensors of a file to parameters of a vit_jax model.

entries      tables of tensor and parameter names, read in both directions
names        tensors under other names: without prefixes, or unstacked
base         the interface of a format; published shapes
hints        fields of the model that the caller states
google       .npz of vision_transformer and big_vision
huggingface  folders of transformers
timm         timm's names: timm, DeiT, DeiT-III, MAE, DINOv2, DINOv3, EVA
timm_names   the fields that timm's tensors determine, and the conventions of published models
timm_config  config.json of timm: entry points and their arguments
torchvision  torchvision's VisionTransformer
resnet       BiT's ResNets, and the stems of hybrids
mixer        MLP-Mixer
"""

from vit_jax.pretrained.formats import google, huggingface, mixer, resnet, timm, torchvision
from vit_jax.pretrained.formats.base import CheckpointFiles, Description, Format
from vit_jax.pretrained.formats.hints import Hints

# In the order in which they are tried: config.json has precedence over tensor names.
FORMATS: tuple[Format, ...] = (
    huggingface.FORMAT,
    google.FORMAT,
    torchvision.FORMAT,
    mixer.FORMAT,
    timm.FORMAT,
    resnet.FORMAT,
)

__all__ = ["FORMATS", "CheckpointFiles", "Description", "Format", "Hints"]
