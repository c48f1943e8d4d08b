"""Small ICC profiles: their numbers against published ones, and as the colour engine reads them."""

import io
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageCms

from seesr.images import icc
from seesr.images.icc import SRGB_CURVE, SRGB_PRIMARIES, Curve
from tests.images.profiles import ADOBE, P3, REC2020, lab_under

# rXYZ, gXYZ and bXYZ of the profiles that the IEC, Apple and Adobe publish.
PUBLISHED = {
    "sRGB": (SRGB_PRIMARIES, [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)]),
    "P3": (P3, [(0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)]),
    "Adobe": (ADOBE, [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_primaries_have_the_published_colorants(name: str) -> None:
    primaries, columns = PUBLISHED[name]
    np.testing.assert_allclose(icc.rgb_to_d50(primaries).T, columns, atol=2e-4)
    tags = icc.read_tags(icc.build_profile(name, SRGB_CURVE, primaries))
    np.testing.assert_allclose(icc.read_matrix(tags).T, columns, atol=2e-4)


def test_matrices_are_those_of_css_color_4() -> None:
    p3 = [[0.4865709, 0.2656677, 0.1982173], [0.2289746, 0.6917385, 0.0792869], [0, 0.0451134, 1.0439444]]
    rec2020 = [[0.6369580, 0.1446169, 0.1688810], [0.2627002, 0.6779981, 0.0593017], [0, 0.0280727, 1.0609851]]
    np.testing.assert_allclose(icc.rgb_to_xyz(P3), p3, atol=1e-6)
    np.testing.assert_allclose(icc.rgb_to_xyz(REC2020), rec2020, atol=1e-6)


def test_the_colour_engine_reads_built_profiles_within_half_a_step() -> None:
    """CIELAB of CSS Color 4 for the primaries of Display P3, mid-grey and white; transicc agrees within 0.05."""
    wanted = [(56.21, 94.47, 98.90), (86.61, -106.54, 102.86), (31.01, 70.45, -115.58), (53.59, 0, 0), (100, 0, 0)]
    colors = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255)])
    found = lab_under(icc.build_profile("P3", SRGB_CURVE, P3), colors)
    assert (np.abs(found - wanted) <= (0.3, 0.6, 0.6)).all()


@pytest.mark.parametrize("curve", [SRGB_CURVE, Curve(1.8), Curve(2.2), Curve(2.8)])
def test_built_curves_are_the_curve(curve: Curve) -> None:
    profile = icc.build_profile("grey", curve, None)
    light = curve(np.arange(256) / 255)
    lightness = np.where(light > 216 / 24389, 116 * np.cbrt(light) - 16, light * 24389 / 27)
    assert np.abs(lab_under(profile, np.arange(256)[:, None])[:, 0] - lightness).max() < 0.5
    back = icc.read_curve(icc.read_tags(profile)[b"kTRC"])
    assert np.abs(back(np.linspace(0, 1, 999)) - curve(np.linspace(0, 1, 999))).max() < 5e-4


def test_profiles_are_small_whole_and_the_same_each_time(tmp_path: Path) -> None:
    for primaries in (P3, None):
        profile = icc.build_profile("Built from cICP", SRGB_CURVE, primaries)
        assert profile == icc.build_profile("Built from cICP", SRGB_CURVE, primaries)
        assert len(profile) < 3000
        assert struct.unpack(">I", profile[:4]) == (len(profile),)
        assert (
            ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip() == "Built from cICP"
        )


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_exiftool_reads_a_built_profile(tmp_path: Path) -> None:
    (tmp_path / "p3.icc").write_bytes(icc.build_profile("Built from cICP", SRGB_CURVE, P3))
    command = ["exiftool", "-validate", "-s3", "-ProfileDescription", "-RedMatrixColumn", "-ProfileVersion"]
    printed = subprocess.run([*command, tmp_path / "p3.icc"], capture_output=True, text=True, check=True).stdout
    assert printed.split("\n")[:3] == ["OK", "Built from cICP", "0.51512 0.2412 -0.00105"]


def test_parametric_curves_are_those_of_the_standard() -> None:
    """ICC.1:2010 table 65, with numbers by hand."""

    def light(kind: int, numbers: list[float], stored: float) -> float:
        data = struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))
        return float(icc.read_curve(b"para" + struct.pack(">IHH", 0, kind, 0) + data)(np.array(stored)))

    assert light(0, [2], 0.5) == pytest.approx(0.25)
    assert light(1, [2, 2, -0.5], 0.5) == pytest.approx(0.25)  # (2 x - 0.5)^2
    assert light(1, [2, 2, -0.5], 0.2) == 0  # below 0.25
    assert light(2, [2, 1, -0.25, 0.125], 0.75) == pytest.approx(0.375)  # (x - 0.25)^2 + 0.125
    assert light(2, [2, 1, -0.25, 0.125], 0.1) == pytest.approx(0.125)
    assert light(3, [2, 0.5, 0.5, 0.25, 0.5], 0.75) == pytest.approx(0.765625)  # (0.5 x + 0.5)^2
    assert light(3, [2, 0.5, 0.5, 0.25, 0.5], 0.25) == pytest.approx(0.0625)  # 0.25 x
    assert light(4, [2, 1, 0, 0.5, 0.25, 0.125, 0.0625], 0.5) == pytest.approx(0.375)  # x^2 + 0.125
    assert light(4, [2, 1, 0, 0.5, 0.25, 0.125, 0.0625], 0.125) == pytest.approx(0.125)  # 0.5 x + 0.0625


def test_effective_gamma() -> None:
    ramp = np.linspace(0, 1, 256)
    for gamma in (1, 1.8, 2.2, 2.8):
        assert icc.effective_gamma(ramp**gamma) == pytest.approx(gamma)
    assert icc.effective_gamma(SRGB_CURVE(ramp)) == pytest.approx(2.24, abs=0.03)


@pytest.mark.parametrize("numbers", [(0,) * 8, (0.3, 0.3) * 4, (0.3127, 0, *P3[2:]), (0.7, 0.3, *P3[2:])])
def test_impossible_chromaticities_are_refused(numbers: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="chromaticities"):
        icc.rgb_to_xyz(numbers)


def test_damaged_profiles_are_refused() -> None:
    whole = icc.build_profile("P3", SRGB_CURVE, P3)
    many = whole[:128] + b"\xff" * 4 + whole[132:]
    for profile in (b"", b"nonsense" * 50, whole[:100], whole[:140], many):
        with pytest.raises(ValueError, match="it is"):
            icc.read_tags(profile)
    for curve in (b"", b"curv", b"curv" + bytes(4) + b"\xff" * 4, b"para" + bytes(4) + b"\0\x09", b"text" + bytes(9)):
        with pytest.raises(ValueError, match="curves"):
            icc.read_curve(curve)
    with pytest.raises(ValueError, match="matrix"):
        icc.read_matrix(icc.read_tags(whole[:140].ljust(len(whole), b"\0")))
