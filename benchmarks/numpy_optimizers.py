"""Reference implementations of the optimizers in NumPy, in the precision of their inputs."""

from collections.abc import Iterator, Sequence

import numpy as np

LR, DECAY, B1, B2, EPS, MOMENTUM = 1e-2, 0.1, 0.9, 0.999, 1e-8, 0.9
MUON = (3.4445, -4.7750, 2.0315)  # Coefficients of the Newton-Schulz iteration, Jordan 2024.


def updated(name: str, kernel: np.ndarray, grads: Sequence[np.ndarray]) -> np.ndarray:
    """Returns a kernel after one update per gradient.

    Args:
      name: a value of `config.optim.name`.
      kernel: [n, width], both at least 32.
      grads: gradients with the shape of the kernel.
    """
    for u in _DIRECTIONS[name](grads, kernel.dtype.type):
        u = u + kernel.dtype.type(DECAY) * kernel
        if name == "lamb":  # The trust ratio includes the weight decay.
            u = u * (np.sqrt((kernel**2).sum()) / np.sqrt((u**2).sum()))
        kernel = kernel - kernel.dtype.type(LR) * u
    return kernel


def _adam(grads, number) -> Iterator[np.ndarray]:
    m = v = 0
    for t, g in enumerate(grads, 1):
        m = number(B1) * m + number(1 - B1) * g
        v = number(B2) * v + number(1 - B2) * g**2
        corrected = m / (1 - number(B1) ** t), v / (1 - number(B2) ** t)
        yield corrected[0] / (np.sqrt(corrected[1]) + number(EPS))


def _sgd(grads, number) -> Iterator[np.ndarray]:
    m = 0
    for g in grads:
        m = number(MOMENTUM) * m + g
        yield m


def _lion(grads, number) -> Iterator[np.ndarray]:
    m = 0
    for g in grads:
        yield np.sign(number(B1) * m + number(1 - B1) * g)
        m = number(B2) * m + number(1 - B2) * g


def _adafactor(grads, number) -> Iterator[np.ndarray]:
    rows = columns = m = 0
    for t, g in enumerate(grads, 1):
        keep = min(number(B2), 1 - number(t) ** number(-0.8))
        rows = keep * rows + (1 - keep) * (g**2).mean(1)
        columns = keep * columns + (1 - keep) * (g**2).mean(0)
        # Normalising by the mean of rows or of columns differs only by rounding.
        u = g / np.sqrt(rows / rows.mean())[:, None] / np.sqrt(columns)
        m = number(MOMENTUM) * m + number(1 - MOMENTUM) * u
        yield m


def _muon(grads, number) -> Iterator[np.ndarray]:
    a, b, c = map(number, MUON)
    m = 0
    for t, g in enumerate(grads, 1):
        m = number(MOMENTUM) * m + number(1 - MOMENTUM) * g
        x = (m / (1 - number(MOMENTUM) ** t)).T  # The shorter side first.
        x = x / (np.sqrt((x**2).sum()) + number(EPS))
        for _ in range(5):
            square = x @ x.T
            x = a * x + (b * square + c * square @ square) @ x
        yield x.T * number(0.2 * np.sqrt(max(x.shape)))


_DIRECTIONS = {
    "adamw": _adam,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lion": _lion,
    "lamb": _adam,
    "muon": _muon,
}
