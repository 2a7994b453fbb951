"""Checks of `config.data` beyond the types and bounds of single keys."""

from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax.errors import ConfigError

RAM = "ram"  # A value of data.cache.


def check_data(data: ConfigDict | FrozenConfigDict) -> None:
    """Checks what the bounds of single keys do not: some values, and combinations of them.

    Raises:
      ConfigError: a value is wrong, or does not match another; the message names the keys.
    """
    if not data.threads:
        raise ConfigError("data.threads is 0: it must be at least 1, or -1 for automatic.")
    if data.shots and data.examples:
        raise ConfigError(
            "data.shots and data.examples are both set: keep one, and set the other to 0."
        )
    if data.window < data.chunk:
        raise ConfigError(
            f"data.window is {data.window:,}, less than data.chunk, {data.chunk:,}: "
            "a window consists of whole chunks. Set it to a hundred chunks or more; with fewer a "
            "batch is drawn from few places of the data."
        )
    _check_cache(data)


def _check_cache(data: ConfigDict | FrozenConfigDict) -> None:
    if not data.cache:
        return
    if data.cache != RAM and not ("/" in data.cache or data.cache.startswith("~")):
        raise ConfigError(
            f'data.cache is "{data.cache}". Accepted: "" for no cache, {RAM}, or a folder, which '
            f"is written with a slash: ./{data.cache}."
        )
    if "://" in data.cache:
        raise ConfigError(f"data.cache is {data.cache}: use a folder of this machine.")
    if data.decode != "exact":
        raise ConfigError(
            f'data.cache keeps whole images, and data.decode is "{data.decode}", which decodes '
            'parts of them to other pixels. Set data.decode=exact (another run), or data.cache="".'
        )
    if data.cache == RAM and data.workers > 0:
        raise ConfigError(
            f"data.cache is {RAM}, the memory of one process, and data.workers is {data.workers}. "
            "Set data.workers=0, which loads in threads, or data.cache=/dev/shm/FOLDER, which "
            "processes share; delete the folder after the run."
        )
