"""Foreign formats: which tensor of a file is which parameter of ours.

entries      the tables' form, read in both directions
names        tensors under other names
base         what a format says of a checkpoint; published shapes
hints        what the caller knows of it
google       .npz of vision_transformer and big_vision
huggingface  folders of transformers
timm         timm's names: timm, DeiT, DeiT-III, MAE, DINOv2, DINOv3, EVA
timm_names   what their tensors tell, and what published models with them have
timm_config  config.json of timm: entry points and their arguments
torchvision  its VisionTransformer
resnet       BiT's ResNets, and the stems of hybrids
mixer        MLP-Mixer
"""

from vit_jax.pretrained.formats import google, huggingface, mixer, resnet, timm, torchvision
from vit_jax.pretrained.formats.base import CheckpointFiles, Description, Format
from vit_jax.pretrained.formats.hints import Hints

# In the order in which they are tried; config.json goes before names.
FORMATS: tuple[Format, ...] = (
    huggingface.FORMAT,
    google.FORMAT,
    torchvision.FORMAT,
    mixer.FORMAT,
    timm.FORMAT,
    resnet.FORMAT,
)

__all__ = ["FORMATS", "CheckpointFiles", "Description", "Format", "Hints"]
