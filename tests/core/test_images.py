import base64
import io
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from scenarium.core import images
from scenarium.core.errors import BadInput

# Red left half, blue right half, one black pixel in the upper left corner.
RGB = np.zeros((24, 40, 3), np.uint8)
RGB[:, :20], RGB[:, 20:], RGB[0, 0] = (200, 10, 10), (10, 10, 200), (0, 0, 0)


def save(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_every_format_gives_the_pixels(kind):
    array = images.read_image(save(Image.fromarray(RGB), kind, **({"quality": 95} if kind in ("JPEG", "WEBP") else {})))
    assert array.shape == RGB.shape
    assert array.dtype == np.uint8
    assert np.abs(array.astype(int)[4:, 4:16] - RGB[4:, 4:16]).max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    # The stored picture is turned so that undoing the orientation gives RGB again.
    turn = Image.Transpose
    inverse = {
        1: None,
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    stored = Image.fromarray(RGB)
    if inverse[orientation] is not None:
        stored = stored.transpose(inverse[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(images.read_image(save(stored, "PNG", exif=exif)), RGB)
    assert images.size_of(save(stored, "JPEG", exif=exif)) == (24, 40)


def test_broken_exif_does_not_spoil_the_picture():
    plain = save(Image.fromarray(RGB), "JPEG")
    block = b"Exif\0\0MM\0*\xff\xff\xff\xff\x00\x01garbage"
    broken = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]
    assert images.read_image(broken).shape == RGB.shape


def test_cmyk_is_converted():
    array = images.read_image(save(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(array[12, 5].astype(int) - RGB[12, 5]).max() < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_their_brightness(kind):
    wide = (np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 68).clip(0, 65535).astype(np.uint16)
    array = images.read_image(save(Image.fromarray(wide), kind))
    assert np.array_equal(array[..., 1], (wide >> 8).astype(np.uint8))


def test_16_bit_rgb_png():
    row = b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0) * 4

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 4, 4, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    assert images.read_image(png)[0, 0].tolist() == [255, 128, 0]


def test_palette_grey_bilevel_and_alpha():
    assert np.array_equal(images.read_image(save(Image.fromarray(RGB).quantize(8), "PNG"))[5, 5], RGB[5, 5])
    assert images.read_image(save(Image.fromarray(RGB[..., 0]), "PNG"))[5, 5].tolist() == [200, 200, 200]
    assert images.read_image(save(Image.fromarray(RGB[..., 0]).convert("1"), "PNG")).max() == 255
    alpha = np.dstack([RGB, np.zeros((24, 40), np.uint8)])
    assert images.read_image(save(Image.fromarray(alpha), "PNG")).min() == 255
    assert images.read_image(save(Image.fromarray(RGB).convert("LA"), "PNG")).shape == RGB.shape


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        content = save(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))
        assert images.read_image(content)[4, 4].tolist() == [255, 0, 0], kind


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_cut_off_pictures_are_refused(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = save(noise, kind)
    for length in (4, 12, 30, len(content) // 2, len(content) * 3 // 4):
        with pytest.raises(BadInput) as caught:
            images.read_image(content[:length], "photo")
        assert caught.value.field == "photo"
        assert caught.value.status == 422


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_damaged_bytes_never_raise_anything_else(kind):
    rng = np.random.default_rng(1)
    content = np.frombuffer(save(Image.fromarray(RGB), kind), np.uint8)
    for _ in range(150):
        damaged = content.copy()
        where = rng.integers(0, len(damaged), rng.integers(1, 12))
        damaged[where] = rng.integers(0, 256, len(where))
        try:
            array = images.read_image(damaged.tobytes(), max_pixels=1_000_000)
        except BadInput:
            continue
        assert array.ndim == 3


@pytest.mark.parametrize("content", [b"", b"hello", b"%PDF-1.4", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n", bytes(1000)])
def test_no_picture(content):
    with pytest.raises(BadInput):
        images.read_image(content)


def test_other_formats_are_not_even_tried():
    with pytest.raises(BadInput, match="known formats"):
        images.read_image(save(Image.fromarray(RGB), "PPM"))


def test_floating_point_pixels_are_refused():
    with pytest.raises(BadInput, match="floating-point"):
        images.read_image(save(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"))


def bomb(side):
    """A PNG header that promises side x side pixels in a few bytes."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [7_200, 9_500, 14_000, 2_000_000_000])
def test_bombs_are_refused(side):
    with pytest.raises(BadInput, match=r"pixels|damaged"):
        images.read_image(bomb(side))


def test_bombs_take_no_memory():
    code = f"""
import base64, io, resource, warnings
from PIL import Image
from scenarium.core import images
warnings.simplefilter("ignore")
images.read_image({images.encode_png(RGB)!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for content in {[base64.b64encode(bomb(side)).decode() for side in (7_200, 13_000, 60_000)]!r}:
    try:
        images.read_image(base64.b64decode(content))
    except images.BadInput:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000  # kilobytes; the smallest of them would take 150,000


def test_importing_needs_neither_torch_nor_pillow():
    code = "import scenarium.core.images, sys; print([m for m in ('torch', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_path_bytes_and_array_agree(tmp_path):
    file = tmp_path / "图片.png"
    file.write_bytes(images.encode_png(RGB))
    assert np.array_equal(images.read_image(str(file)), RGB)
    assert np.array_equal(images.read_image(RGB), RGB)
    assert images.encoded(str(file)) == images.encoded(file.read_bytes()) == images.encoded(RGB)
    assert images.size_of(str(file)) == images.size_of(RGB) == (24, 40)
    assert images.data_url(images.encoded(RGB)).startswith("data:image/png;base64,iVBOR")


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8)])
def test_arrays_of_another_kind_are_refused(array):
    with pytest.raises(BadInput):
        images.read_image(array)


def test_masks():
    marked = np.zeros((6, 8), np.uint8)
    marked[2:4, 3:5] = 255
    expected = marked > 0
    assert np.array_equal(images.read_mask(marked), expected)
    assert np.array_equal(images.read_mask(expected), expected)
    assert np.array_equal(images.read_mask(images.encode_png(marked)), expected)
    assert np.array_equal(images.read_mask((marked > 0).astype(np.uint8)), expected)
    palette = Image.new("P", (8, 6))
    palette.putpalette([0, 0, 0, 90, 0, 0, 0, 90, 0, 0, 0, 90])
    palette.putdata((expected * 3).ravel().tolist())
    assert np.array_equal(images.read_mask(save(palette, "PNG")), expected)
    grey_edges = np.where(marked > 0, 255, 100).astype(np.uint8)
    assert np.array_equal(images.read_mask(grey_edges), expected)
    assert not images.read_mask(np.zeros((4, 4), np.uint8)).any()


def test_grey_agrees_with_pillow():
    noise = np.random.default_rng(2).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    assert np.abs(images.to_grey(noise).astype(int) - np.asarray(Image.fromarray(noise).convert("L"))).max() <= 1


def test_resize_crop_normalise():
    assert images.resize(RGB, 24, 40) is RGB
    small = images.resize(RGB, 12, 20)
    assert small.shape == (12, 20, 3)
    assert small[6, 3].tolist() == [200, 10, 10]
    assert images.resize(np.ones((4, 4), np.float32), 8, 8).dtype == np.float32
    assert images.centre_square(RGB).shape == (24, 24, 3)
    tensor = images.normalise(RGB)
    assert tensor.shape == (3, 24, 40)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    assert tensor[0, 5, 5] == pytest.approx((200 / 255 - 0.485) / 0.229, rel=1e-5)


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("L", (2000, 2000)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    bomb = content[:-2] + content[last:-2] * 2000 + b"\xff\xd9"
    began = time.process_time()
    with pytest.raises(BadInput, match="SCN-4001"):
        images.read_image(bomb)
    assert time.process_time() - began < 0.5  # decoded, it takes 10 s
    assert images.read_image(content).shape == (2000, 2000, 3)
    assert images.read_image(content + b"\xff\xda\0\x02" * 1000).shape == (2000, 2000, 3)  # what follows the picture is none of it
