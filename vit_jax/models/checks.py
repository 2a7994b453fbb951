"""What all models check of the images and names that they are given."""

from collections.abc import Collection, Sequence

from vit_jax.errors import ConfigError, did_you_mean


def check_images(shape: tuple[int, ...], image_size: tuple[int, int], channels: int) -> None:
    """Checks that a batch of images is what the model takes.

    Args:
      shape: of the batch.
      image_size: of the model, pixels.
      channels: of the model.

    Raises:
      ConfigError: it is not.
    """
    if shape[1:] != (*image_size, channels):
        raise ConfigError(
            f"This model takes images of height, width, channels {(*image_size, channels)}, not "
            f"{shape[1:]}: set model.image_size and model.channels, or resize the images."
        )


def check_capture(capture: Collection[str], capturable: Sequence[str]) -> None:
    """Raises ConfigError unless all that is to be captured can be; naming the nearest."""
    for name in capture:
        if name not in capturable:
            raise ConfigError(f'Cannot capture "{name}". ' + did_you_mean(str(name), capturable))
