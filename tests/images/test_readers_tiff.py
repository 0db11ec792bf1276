from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from support.images import random_pixels, regions

from n2n_dist.images.axes import whole
from n2n_dist.images.format import StoredArray
from n2n_dist.images.readers import create_file, open_file

TYPES = ["u1", "<u2", "<i2", "<u4", "<f4", "<f8"]
LAYOUTS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "strips": ((33, 40), {"rowsperstrip": 7}),
    "compressed strips": ((33, 40), {"rowsperstrip": 7, "compression": "zlib", "predictor": True}),
    "tiles": ((33, 40), {"tile": (16, 16)}),
    "colour tiles": ((33, 40, 3), {"tile": (16, 16), "compression": "lzw", "photometric": "rgb"}),
    "planes": ((3, 33, 40), {"planarconfig": "separate", "photometric": "rgb", "compression": "zlib"}),
    "planes of tiles": ((3, 33, 40), {"planarconfig": "separate", "photometric": "rgb", "tile": (16, 16)}),
    "pages": ((4, 33, 40), {"photometric": "minisblack"}),
    "compressed pages": ((2, 4, 33, 40), {"photometric": "minisblack", "compression": "zlib", "tile": (16, 32)}),
    "volume": ((20, 33, 40), {"photometric": "minisblack", "tile": (16, 16, 16), "volumetric": True}),
    "imagej": ((2, 3, 2, 33, 40), {"imagej": True, "metadata": {"axes": "TZCYX"}}),
    "ome": ((2, 3, 33, 40), {"ome": True, "metadata": {"axes": "CZYX"}, "compression": "zlib"}),
    "big-endian": ((4, 33, 40), {"byteorder": ">", "photometric": "minisblack", "metadata": None}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(data=st.data())
def test_a_region_is_the_slice_of_the_whole(data: st.DataObject, layout: str, tmp_path: Path) -> None:
    shape, options = LAYOUTS[layout]
    expected = random_pixels(shape, np.uint16)
    if not (tmp_path / "a.tif").exists():
        tifffile.imwrite(tmp_path / "a.tif", expected, **options)
    region = data.draw(regions(shape))
    with open_file(tmp_path / "a.tif") as (array,):
        assert (array.shape, array.dtype.newbyteorder("="), array.regions) == (shape, np.uint16, True)
        np.testing.assert_array_equal(array.read(region), expected[region])
        np.testing.assert_array_equal(array.read(), expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_what_is_written_by_regions_is_read_by_regions(data: st.DataObject, tmp_path: Path) -> None:
    shape = data.draw(array_shapes(min_dims=2, max_dims=5, min_side=2, max_side=6))
    axes = data.draw(st.sampled_from(["TZCYX"[-len(shape) :], *(["TZYXS"[-len(shape) :]] if len(shape) > 2 else [])]))
    if axes[-1] == "S" and shape[-1] > 4:
        axes = "TZCYX"[-len(shape) :]
    expected = np.zeros(shape, data.draw(st.sampled_from(TYPES)))
    with create_file(tmp_path / "a.tif", [StoredArray.of(expected, axes)]) as file:
        for _ in range(3):
            region = data.draw(regions(shape))
            values = random_pixels(expected[region].shape).astype(expected.dtype)
            expected[region] = values
            file.write(0, region, values)
    region = data.draw(regions(shape))
    with open_file(tmp_path / "a.tif") as (array,):
        assert (array.shape, array.dtype) == (shape, expected.dtype)
        np.testing.assert_array_equal(array.read(region), expected[region])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), expected)


def copied(source: Path, destination: Path) -> tifffile.TiffFile:
    """Write what is read, and open it."""
    with open_file(source) as arrays, create_file(destination, arrays) as file:
        for number, array in enumerate(arrays):
            file.write(number, whole(array.shape), array.read())
    return tifffile.TiffFile(destination)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shape_axes_type_and_byte_order_are_kept(layout: str, tmp_path: Path) -> None:
    shape, options = LAYOUTS[layout]
    expected = random_pixels(shape, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", expected, **options)
    with tifffile.TiffFile(tmp_path / "a.tif") as before, copied(tmp_path / "a.tif", tmp_path / "b.tif") as after:
        assert (after.series[0].shape, after.series[0].axes) == (before.series[0].shape, before.series[0].axes)
        assert after.series[0].kind == before.series[0].kind
        assert after.byteorder == before.byteorder
        np.testing.assert_array_equal(after.asarray(), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "lzw", "predictor": True},
        {"compression": "zlib", "tile": (16, 32)},
        {"compression": "zstd"},
        {"bitspersample": 12},
    ],
    ids=str,
)
def test_compression_tiles_and_packed_bits_are_kept(tmp_path: Path, options: dict[str, Any]) -> None:
    pixels = random_pixels((3, 40, 33), np.uint16) % 4096
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", **options)
    with copied(tmp_path / "a.tif", tmp_path / "b.tif") as after, tifffile.TiffFile(tmp_path / "a.tif") as before:
        for name in ("compression", "predictor", "is_tiled", "tile", "bitspersample"):
            assert getattr(after.pages.first, name) == getattr(before.pages.first, name)
        np.testing.assert_array_equal(after.asarray(), pixels)


def test_values_beyond_packed_bits_are_clipped(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint16), photometric="minisblack", bitspersample=12)
    with open_file(tmp_path / "a.tif") as arrays, create_file(tmp_path / "b.tif", arrays) as file:
        file.write(0, whole((8, 8)), np.full((8, 8), 5000, np.uint16))
    assert (tifffile.imread(tmp_path / "b.tif") == 4095).all()


def test_an_unnamed_last_axis_of_few_is_channels(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", random_pixels((33, 40, 2), np.uint16))
    with open_file(tmp_path / "a.tif") as (array,):
        assert (array.shape, array.axes) == ((33, 40, 2), "YXS")


def test_profile_resolution_and_tags_are_kept(tmp_path: Path) -> None:
    tags = [(271, 2, 0, "Maker", True), (315, 2, 0, "Somebody", True), (33550, 12, 3, (0.5, 0.5, 0.0), True)]
    tifffile.imwrite(
        tmp_path / "a.tif",
        random_pixels((9, 7, 3)),
        photometric="rgb",
        iccprofile=b"profile",
        resolution=(300, 150),
        resolutionunit="INCH",
        description="of the user",
        software="Scanner",
        metadata=None,
        extratags=tags,
    )
    with open_file(tmp_path / "a.tif") as (array,):
        assert (array.metadata["icc"], array.metadata["dpi"]) == (b"profile", (300, 150))
    with copied(tmp_path / "a.tif", tmp_path / "b.tif") as file:
        found = {tag.name: tag.value for tag in file.pages.first.tags}
    assert found["InterColorProfile"] == b"profile"
    assert (found["XResolution"], found["YResolution"], found["ResolutionUnit"]) == ((300, 1), (150, 1), 2)
    assert (found["ImageDescription"], found["Software"]) == ("of the user", "Scanner")
    assert (found["Make"], found["Artist"], found["ModelPixelScaleTag"]) == ("Maker", "Somebody", (0.5, 0.5, 0.0))


def test_spacing_and_unit_of_imagej_are_kept(tmp_path: Path) -> None:
    metadata = {"axes": "ZYX", "spacing": 0.3, "unit": "um", "Labels": ["a", "b", "c"]}
    tifffile.imwrite(
        tmp_path / "a.tif", random_pixels((3, 9, 7), np.uint16), imagej=True, resolution=(10, 10), metadata=metadata
    )
    with copied(tmp_path / "a.tif", tmp_path / "b.tif") as file:
        assert file.imagej_metadata["spacing"] == 0.3
        assert file.imagej_metadata["unit"] == "um"
        assert file.imagej_metadata["Labels"] == ["a", "b", "c"]
        assert file.pages.first.tags["XResolution"].value == (10, 1)


def test_pixel_sizes_and_channels_of_ome_are_kept(tmp_path: Path) -> None:
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "Channel": {"Name": ["red", "green"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", random_pixels((2, 9, 7), np.uint16), metadata=metadata)
    with copied(tmp_path / "a.ome.tif", tmp_path / "b.ome.tif") as file:
        xml = file.ome_metadata
    assert 'PhysicalSizeX="0.25"' in xml
    assert 'Name="green"' in xml


def test_series_of_several_sizes_are_kept(tmp_path: Path) -> None:
    images = [random_pixels((9, 7)), random_pixels((5, 11))]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for pixels in images:
            writer.write(pixels, photometric="minisblack")
    with copied(tmp_path / "a.tif", tmp_path / "b.tif") as file:
        for series, pixels in zip(file.series, images, strict=True):
            np.testing.assert_array_equal(series.asarray(), pixels)
