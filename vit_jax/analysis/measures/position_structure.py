"""Describes similarities between the positions of a grid in numbers: distance, rows, columns."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from vit_jax.models.resize import matrix

# Profile -> pairs of patches, by the difference of their rows and columns.
PROFILES = {
    "same_row": "pairs in the same row",
    "same_column": "pairs in the same column",
    "other": "pairs in different rows and columns",
}
# Number -> meaning.
NUMBERS = {
    "difference_r2": "share of the variance over pairs that the row and column differences explain",
    "additive_r2": "share that f(row difference) + g(column difference) explains",
    "neighbour_accuracy": "share of patches whose most similar other patch is adjacent",
    "neighbour_chance": "the same for random similarities",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionStructure:
    """Similarities of all pairs of positions of a grid, and numbers that describe them.

    Attributes:
      similarity: from -1 to 1, float64.
      profiles: {name of `PROFILES`: mean similarity at each distance}, in patches from 0, rounded;
        NaN where there is no pair.
      numbers: {name of `NUMBERS`: value}; NaN where it is undefined, as for a single patch.
    """

    similarity: Float[np.ndarray, "row column row column"]
    profiles: dict[str, Float[np.ndarray, " distance"]]
    numbers: dict[str, float]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.similarity.shape[0], self.similarity.shape[1]


def describe_similarity(
    similarity: Float[np.ndarray, "row column row column"],
) -> PositionStructure:
    """Returns similarities with the numbers that describe them.

    The pairs of `difference_r2` and `additive_r2` are the ordered pairs of different patches. The
    first is the R^2 of the mean over all pairs with the same (signed) differences of rows and
    columns; the second of the least-squares fit of f(|row difference|) + g(|column difference|).
    Patches are adjacent if they share an edge.
    """
    rows, columns = grid = similarity.shape[:2]
    dy = np.arange(1 - rows, rows)[:, None]
    dx = np.arange(1 - columns, columns)[None]
    counts = (rows - np.abs(dy)) * (columns - np.abs(dx))
    sums = np.bincount(
        _differences(grid).ravel(), similarity.ravel(), minlength=counts.size
    ).reshape(counts.shape)
    return PositionStructure(
        similarity=similarity,
        profiles=_profiles(sums, counts, np.abs(dy), np.abs(dx)),
        numbers=_r2(similarity, sums, counts) | _neighbours(similarity),
    )


def _differences(grid: tuple[int, int]) -> Int[np.ndarray, "row column row column"]:
    """Returns the index of each pair's differences in an array [2 rows - 1, 2 columns - 1]."""
    rows, columns = (np.arange(side)[None] - np.arange(side)[:, None] + side - 1 for side in grid)
    return rows[:, None, :, None] * (2 * grid[1] - 1) + columns[None, :, None, :]


def _profiles(
    sums: Float[np.ndarray, "dy dx"],
    counts: Int[np.ndarray, "dy dx"],
    dy: Int[np.ndarray, "dy 1"],
    dx: Int[np.ndarray, "1 dx"],
) -> dict[str, Float[np.ndarray, " distance"]]:
    distance = np.rint(np.hypot(dy, dx)).astype(int)
    everywhere = np.ones_like(distance, bool)
    masks = {
        "same_row": (dy == 0) & everywhere,
        "same_column": (dx == 0) & everywhere,
        "other": (dy > 0) & (dx > 0),
    }
    profiles = {}
    for name, mask in masks.items():
        size = distance.max() + 1
        total = np.bincount(distance[mask], sums[mask], minlength=size)
        number = np.bincount(distance[mask], counts[mask], minlength=size)
        profiles[name] = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    return profiles


def _r2(
    similarity: Float[np.ndarray, "row column row column"],
    sums: Float[np.ndarray, "dy dx"],
    counts: Int[np.ndarray, "dy dx"],
) -> dict[str, float]:
    rows, columns = similarity.shape[:2]
    different = np.ones(counts.shape, bool)
    different[rows - 1, columns - 1] = False  # A patch with itself.
    weights, means = counts[different], sums[different] / counts[different]
    if not len(weights):
        return {"difference_r2": float("nan"), "additive_r2": float("nan")}
    dy, dx = np.nonzero(different)
    dy, dx = np.abs(dy - (rows - 1)), np.abs(dx - (columns - 1))
    mean = np.average(means, weights=weights)
    deviations = np.square(similarity - mean).reshape(rows * columns, -1)
    total = deviations.sum() - deviations.trace()
    design = np.concatenate([np.eye(rows)[dy], np.eye(columns)[dx]], axis=1)
    root = np.sqrt(weights)
    fitted = design @ np.linalg.lstsq(design * root[:, None], means * root, rcond=None)[0]
    # Similarities that are equal up to rounding have nothing to explain.
    if total <= 1e-20 * weights.sum():
        total = np.nan
    return {
        "difference_r2": float((weights * np.square(means - mean)).sum() / total),
        "additive_r2": float((weights * np.square(fitted - mean)).sum() / total),
    }


def _neighbours(similarity: Float[np.ndarray, "row column row column"]) -> dict[str, float]:
    rows, columns = similarity.shape[:2]
    patches = rows * columns
    if patches == 1:
        return {"neighbour_accuracy": float("nan"), "neighbour_chance": float("nan")}
    others = similarity.reshape(patches, patches).copy()
    np.fill_diagonal(others, -np.inf)
    row, column = np.divmod(np.arange(patches), columns)
    nearest = others.argmax(axis=1)
    steps = np.abs(row[nearest] - row) + np.abs(column[nearest] - column)
    adjacent = 2 * ((rows - 1) * columns + rows * (columns - 1))  # Ordered pairs.
    return {
        "neighbour_accuracy": float((steps == 1).mean()),
        "neighbour_chance": adjacent / (patches * (patches - 1)),
    }


def embedding_variance(embedding: Float[np.ndarray, "row column width"]) -> dict[str, float]:
    """Returns the shares of an embedding's variance by row, column and their interaction.

    The embedding is its mean, plus a vector of the row, plus one of the column (the means of the
    row and of the column, without the mean), plus a rest: the interaction. The shares of the sum of
    squares around the mean add up to 1 (two-way analysis of variance); NaN if there is none.
    """
    mean = embedding.mean(axis=(0, 1))
    row = embedding.mean(axis=1, keepdims=True) - mean
    column = embedding.mean(axis=0, keepdims=True) - mean
    rest = embedding - mean - row - column
    total = np.square(embedding - mean).sum() or np.nan
    rows, columns = embedding.shape[:2]
    return {
        "row": float(columns * np.square(row).sum() / total),
        "column": float(rows * np.square(column).sum() / total),
        "interaction": float(np.square(rest).sum() / total),
    }


def correlate(
    first: Float[np.ndarray, "row column row column"],
    second: Float[np.ndarray, "row2 column2 row2 column2"],
) -> float:
    """Returns the correlation of the similarities of two grids over the same image.

    Both are resized along each of their four axes, bilinearly between the centres of patches, to
    the smaller number of rows and of columns. Pearson's correlation is then over the ordered pairs
    of different patches; NaN if there are none, or if they are all equal.
    """
    grid = tuple(min(sides) for sides in zip(first.shape[:2], second.shape[:2], strict=True))
    values = []
    for similarity in (first, second):
        for axis in range(4):
            resize = matrix("bilinear", similarity.shape[axis], grid[axis % 2])
            similarity = np.moveaxis(np.tensordot(resize, similarity, axes=(1, axis)), 0, axis)
        patches = grid[0] * grid[1]
        pairs = similarity.reshape(patches, patches)[~np.eye(patches, dtype=bool)]
        values.append(pairs - pairs.mean() if len(pairs) else pairs)
    norms = np.linalg.norm(values[0]) * np.linalg.norm(values[1])
    return float(values[0] @ values[1] / norms) if norms else float("nan")
