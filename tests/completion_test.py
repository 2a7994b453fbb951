"""The completion script, run by bash as it completes a line."""

import shutil
import subprocess

import pytest

from vit_jax.__main__ import command, verbs
from vit_jax.completion import script


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes_flags_values_keys_and_arguments(tmp_path):
    expected = {
        "ev": ["evaluate"],
        "config qu": ["quickstart"],
        "completion b": ["bash"],
        "train --config=qu": ["quickstart"],
        "train --config.optim.schedule.na": ["--config.optim.schedule.name="],
        "train --wo": ["--workdir="],
        "sweep --launcher=s": ["slurm"],
        "evaluate --workdir=x --method=k": ["knn"],
        "convert x y --to=h": ["hf"],
        "fit --law=chinchilla_": ["chinchilla_repeat"],
    }
    file = tmp_path / "completion"
    file.write_text(script("bash", {verb: command(verb) for verb in verbs()}))
    lines = [f"source {file}"]
    for typed in expected:
        count = len(typed.split())
        lines += [
            f"COMP_CWORD={count}",
            f"COMP_LINE='vit-jax {typed}'; COMP_POINT=${{#COMP_LINE}}",
            f'COMP_WORDS=(vit-jax {typed}); COMPREPLY=(); _vit_jax; echo "${{COMPREPLY[*]}}"',
        ]
    done = subprocess.run(
        ["bash"], input="\n".join(lines), capture_output=True, text=True, timeout=20
    )
    answers = dict(zip(expected, done.stdout.splitlines(), strict=True))
    assert {typed: answer.split() for typed, answer in answers.items()} == expected, done.stderr


def test_fish_is_told_the_values_of_flags_and_arguments():
    text = script("fish", {verb: command(verb) for verb in verbs()})
    assert "from sweep' -l launcher -d" in text and "-x -a 'local slurm'" in text
    assert "from completion' -f -a 'bash zsh fish'" in text
