import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from support.images import shifted, smooth_scene
from support.processes import ROOT, run

from n2n_dist.audit.audit import audit_folder, write_report
from n2n_dist.audit.results import Audit
from n2n_dist.building.build import build
from n2n_dist.building.plan import Options
from n2n_dist.errors import UserError
from n2n_dist.images.image import write_image
from n2n_dist.scenes import Grouping
from n2n_dist.shards.index import Index
from n2n_dist.shards.indexing import write_index

SIGMA = 12 / 255
SIZE = 320
MARGIN = 16
BLACK, WHITE = 1000.0, 61000.0

Make = Callable[..., Path]
Fault = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def plain(scene: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """A capture: the scene [H, W] and white noise."""
    return scene + rng.normal(0, SIGMA, scene.shape)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Build shards of smooth scenes whose captures `fault` makes; tiles of 160 pixels, four a scene."""

    def build_scenes(
        fault: Fault = plain,
        scenes: int = 4,
        captures: int = 2,
        black: float = BLACK,
        white: float = WHITE,
        floats: bool = False,
        holdout: int = 0,
    ) -> Path:
        rng = np.random.default_rng(0)
        for number in range(scenes):
            scene = smooth_scene((SIZE + 2 * MARGIN, SIZE + 2 * MARGIN), number)
            for k in range(captures):
                values = fault(scene, k, rng)[MARGIN:-MARGIN, MARGIN:-MARGIN, None]
                pixels = BLACK + values * (WHITE - BLACK)
                pixels = pixels.astype(np.float32) if floats else np.rint(pixels).clip(0, 65535).astype(np.uint16)
                name = f"{number}/{k}.tif" if captures > 1 else f"{number}.tif"
                write_image(tmp_path / "scenes" / name, pixels)
        options = Options(
            Grouping("folder" if captures > 1 else None),
            tile=160,
            black=black,
            white=white,
            holdout=holdout,
            shard_samples=4,
        )
        build(tmp_path / "scenes", tmp_path / "shards", options)
        return tmp_path / "shards"

    return build_scenes


def subjects(result: Audit, severity: str | None = None) -> list[str]:
    return [finding.subject for finding in result.findings if severity in (None, finding.severity)]


def test_good_captures_have_no_finding_and_known_noise(make: Make) -> None:
    result = audit_folder(make())
    assert result.findings == []
    assert (result.tars, result.scenes, result.samples, result.measured) == (4, 4, 16, 16)
    assert (result.captures, result.channels, result.types) == ([2, 2], [1], ["uint16"])
    assert result.ranges == [[BLACK, WHITE]]
    assert result.noise is not None
    assert result.noise.sigma == pytest.approx(12, rel=0.02)
    assert result.noise.a == pytest.approx(0, abs=0.1 * SIGMA**2)
    assert max(result.clipped_low, result.clipped_high) < 0.001
    assert sum(result.histogram) == 16 * 2 * 160 * 160
    assert len(result.pairs) == 4
    assert max(np.hypot(*pair.shift) for pair in result.pairs) < 0.2
    assert result.gain == pytest.approx(1, abs=0.002)
    assert result.offset == pytest.approx(0, abs=0.001)
    assert result.fixed == pytest.approx(0, abs=0.02)
    assert result.shared == pytest.approx(0, abs=0.03)


def test_shot_and_read_noise_are_recovered(make: Make) -> None:
    a, b = 0.01, 0.0002
    result = audit_folder(make(lambda scene, _, rng: scene + np.sqrt(a * scene + b) * rng.normal(size=scene.shape)))
    assert result.findings == []
    assert result.noise is not None
    assert result.noise.a == pytest.approx(a, rel=0.05)
    assert result.noise.b == pytest.approx(b, abs=0.0001)
    assert result.noise.deviation < 0.05


def test_shift_is_found_and_measured(make: Make) -> None:
    result = audit_folder(make(lambda scene, k, rng: plain(shifted(scene, 0.8 * k, -0.5 * k), k, rng)))
    assert subjects(result, "harms") == subjects(result) == ["shift"]
    assert "4 of 4 scenes" in result.findings[0].what
    np.testing.assert_allclose(np.median([pair.shift for pair in result.pairs], axis=0), (0.8, -0.5), rtol=0.12)


def test_far_displaced_captures_are_not_taken_for_noise_or_flicker(make: Make) -> None:
    result = audit_folder(make(lambda scene, k, rng: plain(shifted(scene, 4 * k, 3 * k), k, rng)))
    assert subjects(result) == ["shift"]
    assert result.noise is not None
    assert result.noise.sigma == pytest.approx(12, rel=0.05)


def test_gain_and_offset_are_found_and_measured(make: Make) -> None:
    result = audit_folder(make(lambda scene, k, rng: plain(1.03 * scene + 0.01 if k else scene, k, rng)))
    assert subjects(result, "harms") == subjects(result) == ["gain, offset"]
    assert result.gain == pytest.approx(1.03, abs=0.003)
    assert result.offset == pytest.approx(0.01, abs=0.002)


def test_one_flickering_scene_of_many_is_named(make: Make) -> None:
    count = iter(range(8))
    result = audit_folder(make(lambda scene, k, rng: plain(scene + (0.02 if next(count) == 3 else 0), k, rng)))
    assert subjects(result) == ["gain, offset"]
    assert "1 of 4 scenes" in result.findings[0].what
    assert "000001-1" in result.findings[0].what
    assert result.gain == pytest.approx(1, abs=0.01)  # of most scenes
    assert result.offset == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize("scenes", [4, 1])
def test_pattern_that_captures_share_is_found_and_measured(make: Make, scenes: int) -> None:
    pattern = np.random.default_rng(9).normal(0, np.sqrt(0.2) * SIGMA, (SIZE + 2 * MARGIN,) * 2)

    def patterned(scene: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
        return scene + pattern + rng.normal(0, np.sqrt(0.8) * SIGMA, scene.shape)

    result = audit_folder(make(patterned, scenes=scenes))
    assert result.shared == pytest.approx(0.2, abs=0.03)
    if scenes == 1:  # nothing else at the same place to compare with
        assert result.fixed is None
        assert subjects(result, "harms") == subjects(result) == ["shared noise"]
    else:
        assert result.fixed == pytest.approx(0.2, abs=0.02)
        assert subjects(result, "harms") == subjects(result) == ["fixed pattern"]


def test_stripes_of_a_sensor_are_a_fixed_pattern(make: Make) -> None:
    columns = np.random.default_rng(9).normal(0, np.sqrt(0.2) * SIGMA, SIZE + 2 * MARGIN)
    result = audit_folder(make(lambda scene, k, rng: plain(scene + columns, k, rng)))
    assert subjects(result) == ["fixed pattern"]
    assert result.fixed == pytest.approx(0.2 / 1.2, abs=0.04)


def test_noise_that_is_correlated_with_its_neighbours_is_a_note(make: Make) -> None:
    def blurred(scene: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
        noise = rng.normal(0, SIGMA, scene.shape)
        return scene + (noise + np.roll(noise, 1, axis=1)) / np.sqrt(2)

    result = audit_folder(make(blurred))
    assert subjects(result, "note") == subjects(result) == ["correlated noise"]
    assert "+0.50 at a distance of 0 down, 1 right" in result.findings[0].what
    assert result.autocorrelation[0][3] == pytest.approx(0.5, abs=0.03)
    assert result.autocorrelation[1][2] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("captures", [2, 1])
def test_clipping_at_both_ends_is_found_and_counted(make: Make, captures: int) -> None:
    shares: list[tuple[float, float]] = []

    def clipped(scene: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
        values = plain(1.1 * scene - 0.1, k, rng)
        inside = values[MARGIN:-MARGIN, MARGIN:-MARGIN]
        shares.append((np.mean(inside < 0.002), np.mean(inside > 0.9)))
        return values.clip(0.002, 0.9)

    result = audit_folder(make(clipped, captures=captures))
    assert (result.clipped_low, result.clipped_high) == pytest.approx(tuple(np.mean(shares, axis=0)), rel=0.01)
    found = {finding.subject: finding.severity for finding in result.findings}
    assert found["clipped at black"] == ("harms" if captures > 1 else "note")
    assert found["clipped at white"] == "note"
    assert set(found) - {"noisy images"} == {"clipped at black", "clipped at white"}
    assert result.noise is not None
    assert result.noise.sigma == pytest.approx(12, rel=0.05)  # clipped blocks do not lower it


def test_identical_captures_are_found_and_not_measured_as_pairs(make: Make) -> None:
    kept: list[np.ndarray] = []

    def copied(scene: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
        kept.append(plain(scene, k, rng))
        return kept[2] if len(kept) == 4 else kept[-1]

    result = audit_folder(make(copied))
    assert subjects(result, "harms") == subjects(result) == ["identical captures"]
    assert result.identical == ["000001-1"]
    assert len(result.pairs) == 3
    assert result.noise is not None
    assert result.noise.sigma == pytest.approx(12, rel=0.02)


def test_copies_only_leave_nothing_to_measure(make: Make) -> None:
    result = audit_folder(make(lambda scene, k, rng: scene))
    assert subjects(result, "harms") == ["identical captures"]
    assert result.noise is None


def test_captures_without_noise_are_found(make: Make) -> None:
    result = audit_folder(make(lambda scene, k, rng: scene + rng.normal(0, 0.2 / 255, scene.shape)))
    assert subjects(result, "harms") == ["no noise"]
    assert result.noise is not None
    assert result.noise.sigma == pytest.approx(0.2, rel=0.05)


def test_samples_that_cannot_be_read_are_found_and_left_out(make: Make) -> None:
    folder = make(plain, floats=True)
    tar, sample = Index([folder]).sample(5)
    with tar.open("r+b") as file:
        file.seek(sample.captures[0].offset + sample.captures[0].size - 4)
        file.write(np.float32(np.nan).tobytes())
    write_index(folder)
    result = audit_folder(folder)
    assert subjects(result, "harms") == subjects(result) == ["unreadable"]
    assert list(result.unreadable) == [sample.key]
    assert result.measured == 15


def test_levels_that_were_not_given_are_noted(make: Make) -> None:
    def dark(scene: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
        light = 0.06 * scene
        return light + np.sqrt(0.001 * light + 1e-7) * rng.normal(size=scene.shape)

    result = audit_folder(make(dark, black=0, white=65535))
    assert sorted(subjects(result, "note")) == sorted(subjects(result)) == ["black level", "range"]
    black_level = next(finding for finding in result.findings if finding.subject == "black level")
    level = float(black_level.remedy.split("likely ")[1].split()[0])
    assert level == pytest.approx(BLACK, rel=0.05)


def test_noise_that_is_no_line_of_brightness_is_noted(make: Make) -> None:
    result = audit_folder(make(lambda scene, k, rng: scene + 0.15 * np.abs(scene - 0.5) * rng.normal(size=scene.shape)))
    assert subjects(result, "note") == subjects(result) == ["noise model"]


def test_noise_of_single_images_is_noted(make: Make) -> None:
    result = audit_folder(make(captures=1))
    assert subjects(result) == ["noisy images"]
    assert result.noise is not None
    assert result.noise.sigma == pytest.approx(12, rel=0.05)
    assert result.pairs == []
    assert result.gain is result.shared is None


def test_more_captures_are_compared_in_turn(make: Make) -> None:
    result = audit_folder(
        make(lambda scene, k, rng: plain(shifted(scene, 0, 2 * (k == 2)), k, rng), captures=3, scenes=1)
    )
    assert [(pair.first, pair.second) for pair in result.pairs] == [(0, 1), (1, 2)]
    assert [pair.shift[1] for pair in result.pairs] == pytest.approx([0, 2], abs=0.2)


def test_tar_other_than_indexed_is_named_and_left_out(make: Make) -> None:
    shards = make()
    tar = shards / "shard-000002.tar"
    flip(tar)
    result = audit_folder(shards)
    assert subjects(result, "harms") == subjects(result) == ["digest"]
    assert result.differing == [str(tar)]
    assert str(tar) in result.findings[0].what
    assert (result.tars, result.samples) == (4, 12)
    for other in shards.glob("*.tar"):
        if other != tar:
            flip(other)
    assert audit_folder(shards).measured == 0


def flip(tar: Path) -> None:
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)


@pytest.mark.parametrize("samples", [1, 5, 1000])
def test_large_data_sets_are_measured_on_an_even_part(make: Make, samples: int) -> None:
    result = audit_folder(make(), samples)
    assert result.measured == min(samples, 16)
    assert result.samples == 16
    if samples == 5:
        assert len(result.pairs) == 4  # of every scene


def test_tiles_too_small_to_measure_are_said_to_be_so(make_shards: Make) -> None:
    result = audit_folder(make_shards(size=(40, 36, 3)))
    assert result.measured == 6
    assert audit_folder(make_shards(name="small", size=(30, 36, 3))).measured == 0


def test_refusals(make_shards: Make, tmp_path: Path) -> None:
    shards = make_shards()
    with pytest.raises(UserError, match="--samples 0"):
        audit_folder(shards, 0)
    with pytest.raises(UserError, match="no such folder"):
        audit_folder(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output"):
        write_report(shards, tmp_path / "file" / "report")


def test_demo_shards_have_no_harmful_finding() -> None:
    result = audit_folder(ROOT / "shards/demo/validation")
    assert subjects(result, "harms") == []
    assert len(Index([ROOT / "shards/demo/validation"])) == result.samples


def test_script_reports_training_and_validation(make: Make, tmp_path: Path) -> None:
    def faulty(scene: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
        return plain(shifted(scene, 0, 0.6 * k), k, rng)

    shards = make(faulty, holdout=1)
    shutil.copy(shards / "shard-000000.tar", tmp_path / "kept.tar")
    flip(shards / "shard-000000.tar")
    finished = run("shards/audit.py", shards).checked()
    out = finished.out[0]
    assert f"findings on {shards}: 2 harmful to training, none to note" in out
    assert f"findings on {shards / 'validation'}: 1 harmful to training, none to note" in out
    assert max(map(len, out.splitlines())) < 250
    contents = json.loads((shards / "audit" / "audit.json").read_text())
    assert [one["name"] for one in contents] == [str(shards), str(shards / "validation")]
    assert [[f["subject"] for f in one["findings"]] for one in contents] == [["digest", "shift"], ["shift"]]
    assert contents[0]["noise"]["b"] == pytest.approx(SIGMA**2, rel=0.1)
    for name in ("audit.png", "audit-validation.png"):
        with PIL.Image.open(shards / "audit" / name) as page:
            assert min(page.size) > 1000
            assert len(np.unique(np.asarray(page.convert("L")))) > 50
    assert "error: " in run("shards/audit.py", shards / "audit").err[0]
    with (shards / "shard-000001.tar").open("r+b") as file:
        file.truncate(1000)
    refused = run("shards/audit.py", shards, f"--output={tmp_path / 'report'}")
    assert refused.codes == [2]
    assert "shard-000001.tar: 1,000 bytes" in refused.err[0]
    assert not (tmp_path / "report").exists()
