"""Published runs that the tests of the scaling laws fit."""

import csv

import numpy as np
import pytest

from tests.conftest import SHARED


def read(name: str) -> dict[str, np.ndarray]:
    """Columns of a table by name: numbers where all are; the test is skipped without the table."""
    path = SHARED / "scaling_data" / name
    if not path.is_file():
        pytest.skip(f"no published runs: {path} does not exist")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {key: _column([row[key] for row in rows]) for key in rows[0]}


def learning_curves() -> dict[tuple[str, str], tuple[np.ndarray, ...]]:
    """By model and task: x and y of the fit half, x and y of the other (Revisiting)."""
    table = read("benchmark.vision.csv")
    curves = {}
    for model, task in sorted({*zip(table["Model"], table["Task"], strict=True)}):
        rows = (table["Model"] == model) & (table["Task"] == task)
        x, y, early = (table[k][rows] for k in ("Seen Examples", "Loss", "Training"))
        early = early == 1
        curves[str(model), str(task)] = x[early], y[early], x[~early], y[~early]
    return curves


def few_shot_runs() -> tuple[np.ndarray, np.ndarray]:
    """Core-days and ImageNet 10-shot errors of Scaling ViT's 262 runs."""
    table = read("zhai2021_vit_fewshot_runs.csv")
    return table["tpuv3_core_days"], 1 - table["INet10"] / 100


def _column(values):
    try:
        return np.array(values, float)
    except ValueError:
        return np.array(values)
