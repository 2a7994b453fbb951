"""Loading a large checkpoint needs memory for one copy of it."""

import pytest

from benchmarks.loading import SIZES, measure, write


@pytest.mark.slow
@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.campaign), 4])
def test_loading_takes_at_most_the_files_size_and_a_third(devices, tmp_path):
    size = write(SIZES["full"][0], tmp_path)
    assert size > 1.2e9
    assert measure(tmp_path, devices)["bytes"] <= 1.3 * size
