"""The configs under test, with and without arguments."""

import importlib.util
import pathlib
from typing import Any

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
NAMES = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix()
    for path in CONFIGS.rglob("*.py")
    if path.stem != "__init__"
)
# Arguments that are tried beside none.
ARGUMENTS = {
    "vit_i1k": ["variant=L/16,aug=strong2,reg=true", "variant=Ti/16,aug=none", "variant=S/32"],
    "vit_s16_i1k": ["epochs=300"],
    "vit_i21k": ["variant=L/16,aug=medium2,epochs=30", "variant=H/14"],
    "vit_g_scaling": [
        "variant=s/28,steps=20000",
        "variant=B/28,steps=60000",
        "variant=G/14,steps=1000000",
        "variant=e/14",
        "variant=22B/14",
    ],
    "finetune": [
        "model=L/16,dataset=imagenet2012",
        "model=H/14,dataset=cifar100",
        "model=B/32,dataset=oxford_iiit_pet",
        "model=S/16,dataset=oxford_flowers102,size=224",
        "mode=probe,pixels=imagenet,pre_logits=keep",
        "mode=lora,rank=4,decay=0.75",
    ],
    "scaling/data_x_params": [
        "model=BiT-R50x1",
        "data=fashion_mnist,model=vit-1m",
        "data=fashion_mnist,model=resnet-500k",
    ],
    "scaling/isoflop": ["model=L/16", "data=fashion_mnist"],
    "scaling/shape_star": ["data=fashion_mnist"],
    "scaling/vit_vs_cnn": [
        "model=BiT-R152x2",
        "model=R50+B/16,data=imagenet2012",
        "model=Mixer-B/32,data=imagenet2012",
        "data=fashion_mnist",
        "data=fashion_mnist,model=hybrid",
        "data=fashion_mnist,model=resnet",
        "data=fashion_mnist,model=mixer",
    ],
    "image_folder": ["root=/data/birds,variant=S/16,size=224,epochs=30"],
}
CASES = [(name, arg) for name in NAMES for arg in ("", *ARGUMENTS.get(name, ()))]
each_config = pytest.mark.parametrize("name", NAMES)
each_case = pytest.mark.parametrize(("name", "arg"), CASES)

# Training examples and classes: by data.name, else data.source.
DATA_SETS = {
    "imagenet2012": (1_281_167, 1000),
    "imagenet21k": (14_197_122, 21_843),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "oxford_iiit_pet": (3_680, 37),
    "oxford_flowers102": (1_020, 102),
    "digits": (1_437, 10),
    "fashion_mnist": (60_000, 10),
    "image_folder": (1_000, 5),
}


def load(name: str) -> Any:
    """The module configs/NAME.py, read by its path, as the commands do."""
    spec = importlib.util.spec_from_file_location(f"config_{name}", ROOT / f"configs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get_config(name: str, arg: str = "") -> ConfigDict:
    return load(name).get_config(arg or None)


def data_set(config: ConfigDict | FrozenConfigDict) -> tuple[int, int]:
    return DATA_SETS[config.data.name or config.data.source]
