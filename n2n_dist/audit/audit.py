"""Audit of shards: damage, noise, and violations of Noise2Noise's assumptions.

The digest of every tar is compared; pixels are measured on tiles that are evenly spread over the data set. Captures
0 and 1, 1 and 2, ... of a scene are compared. Values are in units of the range, black 0 and white 1, unless a field
names another unit.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from n2n_dist.audit.findings import find
from n2n_dist.audit.results import Audit, Noise, Pair
from n2n_dist.audit.table import table
from n2n_dist.errors import UserError
from n2n_dist.files import write_json
from n2n_dist.measure import noise_estimation, registration
from n2n_dist.measure.clipping import Extremes
from n2n_dist.measure.noise_estimation import Blocks
from n2n_dist.shards.cache import File
from n2n_dist.shards.index import INDEX, VALIDATION, Index
from n2n_dist.shards.indexing import differing
from n2n_dist.shards.reading import read_pixels
from n2n_dist.shards.records import Sample

SAMPLES = 256
"""Tiles that are measured: of 256 x 256 pixels, 65,000 blocks, so that a noise level is good to one per cent."""
SMALLEST = 2 * noise_estimation.BLOCK
"""Smallest height and width of a tile that is measured, in pixels."""
CLIPPED_BLOCK = 0.01
"""A block with a larger share of clipped pixels has another mean and variance than its scene."""
HISTOGRAM = 200
"""Bins of the histogram."""

_ORIGIN = re.compile(r"(.+)-(\d{5,})-(\d{5,})")  # of a key that `build` wrote: scene, top, left


def write_report(folder: Path, output: Path, samples: int = SAMPLES) -> None:
    """Audit a folder of shards and its `validation/`, print tables, and write `audit.json` and a page for each.

    A report of the same name in `output` is replaced.

    Raises:
        UserError: as `audit_folder`, or `output` cannot be written.

    """
    from n2n_dist.audit.page import draw  # imports matplotlib, which takes a second

    audits = [
        audit_folder(part, samples) for part in (folder, folder / VALIDATION) if part == folder or _is_indexed(part)
    ]
    try:
        output.mkdir(parents=True, exist_ok=True)
        contents = [{k: v for k, v in asdict(one).items() if k != "pictures"} for one in audits]
        write_json(output / "audit.json", contents, indent=1)
        for number, one in enumerate(audits):
            draw(one, output / ("audit.png" if number == 0 else f"audit-{VALIDATION}.png"))
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error}); choose another --output") from None
    print(table(audits))
    print(f"written: audit.json and {', '.join(path.name for path in sorted(output.glob('audit*.png')))} in {output}")


def audit_folder(folder: Path, samples: int = SAMPLES) -> Audit:
    """Audit one folder of shards.

    Args:
        folder: with `index.json` and the tars.
        samples: tiles to measure; the digests are those of all tars.

    Raises:
        UserError: no index, or a tar that is missing or of another size.

    """
    if samples < 1:
        raise UserError(f"--samples {samples}: must be 1 or more")
    index, changed = Index([folder]), list(differing(folder))
    result = Audit(name=str(folder), tars=len(index.paths), differing=[str(path) for path in changed])
    numbers = _describe(result, index, changed)
    chosen = numbers[np.unique(np.linspace(0, len(numbers) - 1, min(samples, len(numbers))).round().astype(int))]
    tiles = [index.sample(int(number)) for number in chosen]
    tiles = [(tar, sample) for tar, sample in tiles if min(sample.shape[:2]) >= SMALLEST]
    ends = _find_ends(result, tiles)
    tiles = [(tar, sample) for tar, sample in tiles if sample.key not in result.unreadable]
    result.measured = len(tiles)
    if tiles:
        _measure(result, tiles, ends)
    result.findings = find(result)
    return result


def _is_indexed(folder: Path) -> bool:
    return (folder / INDEX).is_file()


def _describe(result: Audit, index: Index, changed: Sequence[Path]) -> np.ndarray:
    """Fill in the fields known from the index, and return the numbers of the samples whose tars are good."""
    of_shard = np.repeat(np.arange(len(index.paths)), index.sizes)
    trusted = [number for number, path in enumerate(index.paths) if path not in changed]
    numbers = np.flatnonzero(np.isin(of_shard, trusted))
    keys, captures, channels, types, ranges = [], set(), set(), set(), set()
    for number in numbers:
        _, sample = index.sample(int(number))
        keys.append(sample.key)
        captures.add(len(sample.captures))
        channels.add(sample.shape[2])
        types.add(sample.dtype)
        ranges.add((sample.black, sample.white))
    result.scenes = len(set(map(_scene, keys)))
    result.samples = len(numbers)
    result.captures = [min(captures), max(captures)] if captures else []
    result.channels, result.types = sorted(channels), sorted(types)
    result.ranges = [list(levels) for levels in sorted(ranges)]
    return numbers[np.argsort(keys, kind="stable")] if keys else numbers  # the tiles of a scene follow one another


def _find_ends(result: Audit, tiles: Sequence[tuple[File, Sample]]) -> dict[int, tuple[float, float]]:
    """Return the values at which each channel is clipped, infinite where it is not."""
    extremes: dict[int, Extremes] = {}
    for tar, sample in tiles:
        try:
            captures = _read(tar, sample)
        except UserError as refusal:
            result.unreadable[sample.key] = str(refusal)
            continue
        for planes in captures:
            for channel, plane in enumerate(planes):
                extremes.setdefault(channel, Extremes()).add(plane)
    ends = {}
    total = sum(one.total for one in extremes.values())
    for channel, one in extremes.items():
        (low, high), (low_share, high_share) = one.range, one.clipped()
        ends[channel] = (low if low_share else -np.inf, high if high_share else np.inf)
        result.clipped_low += low_share * one.total / total
        result.clipped_high += high_share * one.total / total
    if extremes:
        result.lowest = min(one.range[0] for one in extremes.values())
        result.highest = max(one.range[1] for one in extremes.values())
    return ends


def _measure(result: Audit, tiles: Sequence[tuple[File, Sample]], ends: dict[int, tuple[float, float]]) -> None:
    of_pairs: list[Blocks] = []
    of_images: list[Blocks] = []
    pattern = noise_estimation.FixedPattern()
    edges = np.linspace(result.lowest, max(result.highest, np.nextafter(result.lowest, np.inf)), HISTOGRAM + 1)
    histogram = np.zeros(HISTOGRAM, np.int64)
    for scene, members in itertools.groupby(tiles, key=lambda tile: _scene(tile[1].key)):
        spectra: dict[int, np.ndarray] = {}
        blocks: dict[int, list[Blocks]] = {}
        width = 0
        for tar, sample in members:
            captures = _read(tar, sample)
            histogram += sum(np.histogram(planes, edges)[0] for planes in captures)
            if len(captures) > 1 and len(result.pictures) < 2:
                result.pictures = [planes.transpose(1, 2, 0) for planes in captures[:2]]
            elif not result.pictures:
                result.pictures = [captures[0].transpose(1, 2, 0)]
            pattern.add(_origin(sample.key), np.mean(captures, axis=0))
            clipped = [_clipped(planes, ends) for planes in captures]
            of_images.append(noise_estimation.single_blocks(captures[0], clipped[0]))
            for number, (first, second) in enumerate(itertools.pairwise(captures)):
                if np.array_equal(first, second):
                    result.identical.append(scene)
                    continue
                pair = noise_estimation.pair_blocks(first, second, clipped[number] | clipped[number + 1])
                blocks.setdefault(number, []).append(pair)
                spectrum = registration.cross_power(first, second)
                if number not in spectra or spectra[number].shape == spectrum.shape:
                    spectra[number] = spectra.get(number, 0) + spectrum
                    width = first.shape[2]
        for number, spectrum in spectra.items():
            joined = Blocks.join(blocks[number])
            result.pairs.append(_compare(scene, number, spectrum, width, joined))
            if not result.pairs[-1].displaced:
                of_pairs.append(joined)
    if steady := [pair for pair in result.pairs if not pair.displaced]:
        result.gain = float(np.median([pair.gain for pair in steady]))
        result.offset = float(np.median([pair.offset for pair in steady]))
    result.identical = sorted(set(result.identical))
    result.histogram = histogram.tolist()
    if of_pairs or not result.identical:
        _measure_noise(result, Blocks.join(of_pairs or of_images), pattern, paired=bool(of_pairs))


def _measure_noise(result: Audit, blocks: Blocks, pattern: noise_estimation.FixedPattern, paired: bool) -> None:
    blocks = blocks[blocks.clipped <= CLIPPED_BLOCK]
    brightness, variance, count = noise_estimation.noise_curve(blocks)
    if not len(count):
        return
    line = noise_estimation.fit_noise_line(brightness, variance, count)
    level = float(variance.mean())
    result.noise = Noise(
        sigma=float(255 * np.sqrt(level)),
        a=line.a,
        b=line.b,
        deviation=line.deviation,
        brightness=brightness.tolist(),
        variance=variance.tolist(),
    )
    fixed, error = pattern.variance()
    independent = level if paired else max(level - fixed, 0)  # in the difference of a pair the pattern cancels
    if np.isfinite(error) and level > 0:
        result.fixed, result.fixed_error = fixed / (max(fixed, 0) + independent), error / level
    if paired and level > 0:
        shared = noise_estimation.shared_variance(blocks)
        result.shared = shared / (max(shared, 0) + level) if np.isfinite(shared) else None
        result.autocorrelation = noise_estimation.autocorrelation(blocks).tolist()


def _compare(scene: str, number: int, spectrum: np.ndarray, width: int, blocks: Blocks) -> Pair:
    shift, error = registration.find_shift(spectrum, width)
    usable = blocks[blocks.clipped <= CLIPPED_BLOCK]
    usable = usable[usable.roughness <= np.median(usable.roughness)] if len(usable) else usable
    gain, offset, difference, spread = 1.0, 0.0, 0.0, 0.0
    if len(usable) >= noise_estimation.LEAST:
        first, second = usable.means.T
        gain, offset = registration.fit_gain(first, second)
        difference = float(np.sqrt(np.mean(((gain - 1) * first + offset) ** 2)))
        spread = float(np.sqrt(2 * np.mean((second - gain * first - offset) ** 2) / len(usable)))
    return Pair(
        scene=scene,
        first=number,
        second=number + 1,
        shift=shift.tolist(),
        shift_error=error if np.isfinite(error) else None,
        gain=gain,
        offset=offset,
        difference=difference,
        difference_error=spread,
    )


def _read(tar: File, sample: Sample) -> list[np.ndarray]:
    window = (0, 0, *sample.shape[:2])
    return [read_pixels(tar, sample, member, window).transpose(2, 0, 1) for member in sample.captures]


def _clipped(planes: np.ndarray, ends: dict[int, tuple[float, float]]) -> np.ndarray:
    low, high = np.array([ends[channel] for channel in range(len(planes))], planes.dtype).T[..., None, None]
    return (planes <= low) | (planes >= high)


def _scene(key: str) -> str:
    match = _ORIGIN.fullmatch(key)
    return match[1] if match else key


def _origin(key: str) -> tuple[int, int]:
    match = _ORIGIN.fullmatch(key)
    return (int(match[2]), int(match[3])) if match else (0, 0)
