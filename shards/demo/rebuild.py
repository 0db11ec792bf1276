"""Rebuild the demo shards from the photographs they were cut from.

    python shards/demo/rebuild.py OUT

writes ``OUT/train`` (64 tiles) and ``OUT/validation`` (8 tiles, of photographs that ``train`` does not use).
Every photograph comes out of a public package and is checked against its SHA-256. JPEG ones are reduced by an
exact box average, so that the blocks of the compression disappear; all are cut into tiles of 256 x 256 pixels,
which ``shards/build.py`` packs as lossless WebP. The table ``PHOTOS`` below says which tiles, and under what
licence: the tiles stay under the licence of their photograph, see NOTICE.

It needs ``apt-get`` and ``dpkg-deb`` (any Debian that has the packages; run ``apt-get update`` first),
``pip``, and the n2n_dist package. The shards in this folder were made with the wheels of Pillow 13.0.0
(libjpeg-turbo 3.2.0) and imagecodecs 2026.3.6 (libwebp) on x86-64: these give the same tars again, which
``diff -r -x '*.json' OUT/train shards/demo/train`` shows; the indexes name the version of n2n_dist. Others may
compress the tiles to other bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from n2n_dist.errors import UserError, run_command

TILE = 256
VERSIONS = {"pillow": "13.0.0", "imagecodecs": "2026.3.6"}
LOMIRI_16, LOMIRI_20, SKIMAGE = "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "scikit-image"
SKIMAGE_VERSION = "0.26.0"
FOLDERS = {LOMIRI_16: "usr/share/backgrounds", LOMIRI_20: "usr/share/backgrounds", SKIMAGE: "skimage/data"}
BUILD = Path(__file__).resolve().parents[1] / "build.py"


class Photo(NamedTuple):
    """One photograph and the tiles taken from it: (left, top) corners after the reduction."""

    split: str
    name: str
    package: str
    file: str
    sha256: str
    reduce: int
    licence: str
    author: str
    tiles: tuple[tuple[int, int], ...]


# fmt: off
PHOTOS = (
    Photo("train", "bridge", LOMIRI_16, "Bridge_by_Sander_Klootwijk.jpg",
          "bd86b081f9975e2b83527f71e49b9271a8ab40885428395969d9f7d834d7f050", 4, "CC-BY-SA-4.0",
          "Sander Klootwijk", ((568, 256), (300, 356))),
    Photo("train", "dragonfly", LOMIRI_16, "Dragonfly_by_Bolly.jpg",
          "af5af17841009732def24b09bb1e669a1b09d2b4bdeee7812c371101c30d2bb3", 4, "CC-BY-SA-4.0",
          "Bolly", ((480, 180), (736, 256), (224, 0), (768, 0), (0, 288), (736, 512))),
    Photo("train", "nuthatch", LOMIRI_20, "Kleiber_by_Lukas_Baubkus.jpg",
          "6572410c09f4492c74ccadde133565a14c0161617d5917d4c820c66d65a44ba7", 4, "CC-BY-SA-3.0",
          "Lukas Baubkus", ((0, 0), (256, 128), (0, 512), (560, 290), (512, 0))),
    Photo("train", "brushes", LOMIRI_16, "Picture_1A_by_freespace.jpg",
          "89e86af38d04daaef975665dc2127e9fa76f0fd68f4eea105a2d0ae3390b010b", 2, "CC-BY-4.0",
          'Trevor "Freespace"', ((0, 0), (256, 0), (0, 281), (256, 281))),
    Photo("train", "wine", LOMIRI_16, "Wine_by_Jakkub_Mede.jpg",
          "d2e96e6d4da40dd804b3d0ce295e94de04a2d7d9b6785d42cd9d92ba58bced74", 2, "CC-BY-4.0",
          "Jakub Mede", ((480, 380), (512, 680), (920, 380), (256, 1024), (0, 270), (1024, 1536))),
    Photo("train", "pattern", LOMIRI_16, "analogpattern_by_Peter_Nerlich.jpg",
          "15372488a192b2be2eafc67bd3ed31cbfca19abe3929e925607fcbc9cb4d4202", 2, "CC-BY-SA-4.0",
          "Peter Nerlich", ((768, 0), (256, 256))),
    Photo("train", "bird", LOMIRI_16, "free_by_Peter_Nerlich.jpg",
          "85a5453c2fed514c75973016f3d862aca62eb7ca087618822469274ac1092373", 2, "CC-BY-SA-4.0",
          "Peter Nerlich", ((600, 680), (344, 680))),
    Photo("train", "dogs", LOMIRI_16, "friends_by_Aitzol_Berasategi.jpg",
          "cc40e313c74e421edffe3403def413c16878ce14661cce7ec5915baeab35538d", 2, "CC-BY-4.0",
          "Aitzol Berasategi", ((300, 330), (480, 680), (0, 1000), (512, 1240), (772, 760))),
    Photo("train", "clock", LOMIRI_16, "greentock_by_Peter_Nerlich.jpg",
          "e7b20e2db9dcd6e2b278ca55873c2110b35d89cd38b04d0b18728726888e6889", 2, "CC-BY-SA-4.0",
          "Peter Nerlich", ((0, 640), (840, 365), (256, 128), (1100, 700))),
    Photo("train", "stream", LOMIRI_16, "life_by_Aitzol_Berasategi.jpg",
          "4c119350ead80201fe256850c3d316309ddfb4bdf10b235ce982dcde0c667c05", 2, "CC-BY-4.0",
          "Aitzol Berasategi", ((0, 0), (1024, 0), (0, 256), (512, 256), (1280, 256), (256, 512),
            (512, 512), (768, 512), (1024, 512), (0, 768), (768, 768))),
    Photo("train", "picos", LOMIRI_16, "picosdeeuropa_by_Aitzol_Berasategi.jpg",
          "414d0072b2f6f2c555deafeaef6e45c4fed6fa9ad26eba6560ca8803959cf97a", 2, "CC-BY-4.0",
          "Aitzol Berasategi", ((0, 256), (256, 128), (768, 256), (1280, 256), (512, 512), (1024, 512),
            (256, 768), (512, 768), (1152, 968))),
    Photo("train", "dandelion", LOMIRI_16, "seeding_by_Clements_Engelhardt.jpg",
          "a5634d1ab5e41a3568e92d4a894a500c92b891f9ff734e50bd224d6e185a605f", 4, "CC0-1.0",
          "Clemens Engelhardt", ((180, 90), (436, 90), (958, 470), (400, 491))),
    Photo("train", "sunset", LOMIRI_16, "sunset_by_Aitzol_Berasategi.jpg",
          "474dab6a4b9f94dc76c29dfe30e9f5db4af0fd2e33fe5d695f8152b371efca18", 4, "CC-BY-4.0",
          "Aitzol Berasategi", ((430, 184), (0, 440), (256, 440), (700, 440))),
    Photo("validation", "fig", LOMIRI_16, "Picture_0B_by_freespace.jpg",
          "c8c0ab18e48d9e0419fe42881112137f3afafc27dfddc29ec3a6d54c56d225ad", 2, "CC-BY-4.0",
          'Trevor "Freespace"', ((627, 350), (0, 512))),
    Photo("validation", "aitzgorri", LOMIRI_16, "aitzgorri_by_Aitzol_Berasategi.jpg",
          "66268e7b48f8854d36a28765fac6e23ec1aee251daa6da1f64715f201020ad36", 2, "CC-BY-4.0",
          "Aitzol Berasategi", ((1024, 440), (480, 256))),
    Photo("validation", "astronaut", SKIMAGE, "astronaut.png",
          "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5", 1, "public domain",
          "NASA", ((95, 0), (256, 256))),
    Photo("validation", "coffee", SKIMAGE, "coffee.png",
          "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7", 1, "CC0-1.0",
          "Rachel Michetti", ((256, 128),)),
    Photo("validation", "chelsea", SKIMAGE, "chelsea.png",
          "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb", 1, "CC0-1.0",
          "Stefan van der Walt", ((100, 22),)),
)
# fmt: on


def run(*command: str, remedy: str, cwd: Path | None = None) -> None:
    """Run a command; when it is missing or fails, say what to do about it."""
    try:
        subprocess.run(command, check=True, cwd=cwd)
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}; {remedy}") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"`{shlex.join(command)}` ended with status {error.returncode}; {remedy}") from None


def fetch(folder: Path) -> None:
    """Unpack every source package below `folder`, each into a folder of its own name."""
    downloads = folder / "downloads"
    downloads.mkdir()
    for package in (LOMIRI_16, LOMIRI_20):
        run(
            *("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package),
            remedy=f"run `apt-get update`, on a Debian release that has {package}",
            cwd=downloads,  # the only folder into which apt-get download writes
        )
        (deb,) = downloads.glob(f"{package}_*.deb")
        run("dpkg-deb", "-x", str(deb), str(folder / package), remedy="install dpkg")
    options = ("--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.11")
    run(
        *(sys.executable, "-m", "pip", "download", *options, f"{SKIMAGE}=={SKIMAGE_VERSION}"),
        remedy=f"check that pip can download {SKIMAGE} {SKIMAGE_VERSION}",
        cwd=downloads,
    )
    (wheel,) = downloads.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / SKIMAGE)


def cut(photo: Photo, sources: Path, destination: Path) -> None:
    """Check one photograph, reduce it and write its tiles as PNG files."""
    path = sources / photo.package / FOLDERS[photo.package] / photo.file
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "that of no file"
    if digest != photo.sha256:
        raise UserError(
            f"{photo.file} of {photo.package}: SHA-256 is {digest}, not {photo.sha256}; the package has"
            " changed: run this on Debian 12 (bookworm), or choose anew in PHOTOS"
        )
    with Image.open(path) as source:
        image = source.convert("RGB").reduce(photo.reduce)
    folder = destination / photo.split
    folder.mkdir(parents=True, exist_ok=True)
    for left, top in photo.tiles:
        box = (left, top, left + TILE, top + TILE)
        tile = folder / f"{photo.name}-{left:04d}-{top:04d}.png"
        image.crop(box).save(tile, optimize=True, icc_profile=None)


def main() -> None:
    """Fetch, cut and pack."""
    parser = argparse.ArgumentParser(description="Rebuild the demo shards from their photographs.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder that gets train/ and validation/")
    out: Path = parser.parse_args().out
    for name, version in VERSIONS.items():
        if (found := importlib.metadata.version(name)) != version:
            print(f"note: {name} is {found}; byte-for-byte needs {version}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        sources, images = Path(scratch, "sources"), Path(scratch, "images")
        sources.mkdir()
        fetch(sources)
        for photo in PHOTOS:
            cut(photo, sources, images)
        for split in ("train", "validation"):
            command = [sys.executable, str(BUILD), str(images / split), str(out / split)]
            run(*command, "--encoding", "webp", "--shard-samples", "16", remedy="see the message above")


if __name__ == "__main__":
    run_command(main)
