"""PBM, PGM, PPM and PAM, in binary and in text, of 1 to 16 bits."""

import io

import numpy as np
import pytest

from seesr import images

SIZE = (5, 9)


def opened(data: bytes) -> np.ndarray:
    found = images.open_image(io.BytesIO(data))
    return np.asarray(found.rgb) if found.pixels is None else found.pixels


@pytest.mark.parametrize("largest", [1, 7, 100, 255, 256, 1000, 4095, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_depth_is_scaled_to_white(largest: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, largest + 1, (*SIZE, channels))
    head = f"{SIZE[1]} # a comment\n{SIZE[0]}\n{largest}\n".encode()
    binary = values.astype(np.uint8 if largest < 256 else ">u2").tobytes()
    text = b"\n".join(b" ".join(b"%d" % value for value in row.ravel()) for row in values)
    white = 255 if largest < 256 else 65535
    for magic, body in ((b"P6" if channels == 3 else b"P5", binary), (b"P3" if channels == 3 else b"P2", text)):
        found = opened(magic + b"\n" + head + body)
        assert np.abs(found.astype(int) * largest - values * white).max() <= largest / 2  # rounded
        with pytest.raises(ValueError, match="damaged file"):
            opened((magic + b"\n" + head + body)[: len(head) + 6])


def test_bitmaps_have_1_for_black() -> None:
    bits = np.random.default_rng(0).integers(0, 2, SIZE)
    packed = b"P4 9 5\n" + np.packbits(bits.astype(np.uint8), axis=1).tobytes()
    text = b"P1\n#\n9 5\n" + b"\n".join(bytes(row + ord("0")) for row in bits.astype(np.uint8)).replace(b"0", b" 0")
    for data in (packed, text):
        assert np.array_equal(opened(data)[..., 0], 255 - 255 * bits)
        assert images.open_image(io.BytesIO(data)).grey


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_pam_may_have_alpha(depth: int) -> None:
    values = np.random.default_rng(0).integers(1, 65536, (*SIZE, depth))
    head = b"P7\nWIDTH 9\nHEIGHT 5\nDEPTH %d\nMAXVAL 65535\nTUPLTYPE ANY\nENDHDR\n" % depth
    found = images.open_image(io.BytesIO(head + values.astype(">u2").tobytes()))
    assert found.pixels is not None
    assert np.array_equal(found.pixels[..., 0], values[..., 0])
    assert found.grey == (depth < 3)
    assert (found.alpha_pixels is not None) == (depth in (2, 4))


def test_a_pam_may_have_ends_of_lines_as_on_windows() -> None:
    head = b"P7\r\nWIDTH 2\r\nHEIGHT 1\r\nDEPTH 1\r\nMAXVAL 255\r\nENDHDR\r\n"
    assert opened(head + bytes([5, 9]))[..., 0].tolist() == [[5, 9]]


@pytest.mark.parametrize("value", [b"256", b"70000", b"-5"])
def test_a_number_beyond_white_is_damage(value: bytes) -> None:
    """As in libnetpbm."""
    with pytest.raises(ValueError, match="got a damaged file"):
        opened(b"P2 2 1 255\n7 " + value)


@pytest.mark.parametrize(
    "head", [b"P5 0 5 255\n", b"P5 5 5 0\n", b"P5 5 5 70000\n", b"P6 5\n", b"P7\nWIDTH 5\nENDHDR\n"]
)
def test_impossible_sizes_are_damage(head: bytes) -> None:
    with pytest.raises(ValueError, match="got a damaged file"):
        opened(head + bytes(500))


def test_the_size_is_checked_first() -> None:
    with pytest.raises(ValueError, match="at most 64 megapixels, got 60000 x 60000"):
        opened(b"P5 60000 60000 255\n" + bytes(500))
