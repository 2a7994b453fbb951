"""Writes vit_jax/pretrained/imagenet.tsv: ImageNet's 1,000 classes and their WordNet lemmas.

    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wordnet
    python -m tests.imagenet_table wordnet/usr

The order of the classes is that of tensorflow_datasets' imagenet2012; a class's id is "n" and the
position of its synset in WordNet 3.0's file data.noun.
"""

import pathlib
import re
import sys

from tensorflow_datasets.core.utils import resource_utils

from tests.conftest import ROOT

TABLE = ROOT / "vit_jax" / "pretrained" / "imagenet.tsv"
IDS = "datasets/imagenet2012/labels.txt"


def lemmas(nouns: bytes, synset: str) -> str:
    """Returns the lemmas of a synset, "tench, Tinca tinca".

    Source of the format: wndb(5WN), "synset_offset lex_filenum ss_type w_cnt word lex_id ...", with
    w_cnt in hexadecimal.
    """
    position = int(synset.removeprefix("n"))
    fields = nouns[position : nouns.index(b"\n", position)].decode().split(" ")
    assert fields[0] == synset[1:] and fields[2] == "n", fields[:4]
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    return ", ".join(word.replace("_", " ") for word in words)


def table(nouns: bytes, licence: str) -> str:
    """Returns the content of the file."""
    ids = resource_utils.tfds_path(IDS).read_text().split()
    header = [
        "The classes of ImageNet's ILSVRC 2012 in their usual order: id, and lemmas of the synset.",
        "Made by `python -m tests.imagenet_table` from WordNet 3.0 (Debian's wordnet-base).",
        "",
        *licence.splitlines(),
    ]
    lines = [f"# {line}".rstrip() for line in header]
    return "\n".join([*lines, *(f"{i}\t{lemmas(nouns, i)}" for i in ids)]) + "\n"


def licence_of(copyright_file: str) -> str:
    """Returns the licence of WordNet in Debian's copyright file."""
    text = re.search(r"^License: WordNet3.0\n((?: .*\n)+)", copyright_file, re.M)[1]
    return "\n".join(line.strip().removesuffix(" .") for line in text.splitlines()).replace(
        "\n.\n", "\n\n"
    )


if __name__ == "__main__":
    usr = pathlib.Path(sys.argv[1])
    licence = licence_of((usr / "share/doc/wordnet-base/copyright").read_text())
    TABLE.write_text(table((usr / "share/wordnet/data.noun").read_bytes(), licence))
