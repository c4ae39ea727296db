"""What compression does to an image, against Pillow's JPEG, scipy's transform, and H.264 itself."""

import io
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn, idctn
from scipy.ndimage import shift

from eex.stream.frames.compression import MOTION, VIDEO, jpeg, video
from eex.stream.frames.pixel_draws import uniform
from eex.stream.frames.sensor import gaussian_noise
from eex.stream.frames.sources import load_all, open_source


def photographs(count):
    return torch.from_numpy(load_all(open_source("sample"))[0][:count]).float() / 255


@pytest.mark.parametrize("quality", [5, 20, 50, 75, 95])
@pytest.mark.parametrize("crop", [(3, 32, 32), (3, 29, 21), (1, 32, 32)])  # the last blocks are not whole; grey
def test_jpeg_is_pillows(quality, crop):
    images = photographs(24)[:, : crop[0], : crop[1], : crop[2]]
    # they were JPEG files: as they are, many coefficients lie half-way between two steps
    images = gaussian_noise(images, torch.full((24,), 3.0), torch.arange(24))
    mine = jpeg(images, torch.full((len(images),), 100.0 - quality, dtype=torch.float64))
    theirs = []
    for image in images:
        file = io.BytesIO()
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=quality, subsampling=0)
        theirs.append(np.asarray(Image.open(file), dtype=float).reshape(pixels.shape).transpose(2, 0, 1))
    off = np.abs(mine.numpy() * 255 - np.array(theirs))
    # libjpeg transforms in integers: a coefficient half-way between two steps may come out at the other one
    assert (off <= 2).mean() > 0.9
    assert off.mean() < 1


def quantised(image, step, rounding):
    """One channel (H, W), sides multiples of 8: its blocks' spectra in steps, rounded down after adding `rounding`."""
    coded = np.empty_like(image)
    for y in range(0, image.shape[0], 8):
        for x in range(0, image.shape[1], 8):
            spectrum = dctn(image[y : y + 8, x : x + 8], norm="ortho")
            kept = np.sign(spectrum) * np.floor(np.abs(spectrum) / step + rounding) * step
            coded[y : y + 8, x : x + 8] = idctn(kept, norm="ortho")
    return coded.round()


@pytest.mark.parametrize("quantiser", [10, 28, 45])
def test_video_is_prediction_and_what_it_lacks(quantiser):
    images = photographs(8).mean(dim=1, keepdim=True)
    frame = torch.arange(8) + 5
    mine = video(images, torch.full((8,), float(quantiser)), frame, seed=4)
    step = 2 ** ((quantiser - 4) / 6)
    for image, out, motion in zip(images, mine, MOTION * (2 * uniform(frame, 2, 4, VIDEO) - 1), strict=True):
        now = (image[0].numpy().astype(float) * 255).round() - 128
        before = quantised(shift(now, motion, order=1, mode="mirror"), step, 1 / 3)
        predicted = shift(before, -np.round(2 * motion) / 2, order=1, mode="mirror")
        expected = (predicted + quantised(now - predicted, step, 1 / 6) + 128).clip(0, 255).round()
        off = np.abs(out[0].numpy() * 255 - expected)
        assert (off < 1e-3).mean() > 0.99  # two transforms differ in the last bit, where a value lies between two steps


def test_video_loses_as_much_as_h264():
    av = pytest.importorskip("av")
    if "libx264" not in av.codecs_available:
        pytest.skip("PyAV without libx264")
    image = photographs(64).reshape(8, 8, 3, 32, 32).permute(2, 0, 3, 1, 4).reshape(3, 256, 256)  # a picture of many
    image = image.mean(dim=0, keepdim=True)
    before = np.roll(image[0].numpy(), (2, 3), axis=(0, 1))
    for quantiser in (22, 30, 38):
        mine = video(image[None], torch.tensor([float(quantiser)]), torch.tensor([1]))[0]
        theirs = _through_h264(av, [before, image[0].numpy()], quantiser)
        lost = [-10 * np.log10(np.square(np.asarray(x) - image.numpy()).mean()) for x in (mine[0], theirs)]
        assert lost[0] == pytest.approx(lost[1], abs=3), quantiser  # dB


def _through_h264(av, pictures, quantiser):
    """The last of some pictures (H, W) in [0, 1] after H.264 at one quantisation parameter."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.height, stream.width = pictures[0].shape
        stream.pix_fmt = "yuv420p"
        stream.options = {"qp": str(quantiser), "bf": "0", "ipratio": "1", "x264-params": "ipratio=1:threads=1"}
        for picture in pictures:
            grey = np.full((picture.shape[0] * 3 // 2, picture.shape[1]), 128, dtype=np.uint8)
            grey[: picture.shape[0]] = (picture * 255).round()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="yuv420p")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        *_, last = container.decode(video=0)
    return last.to_ndarray()[: pictures[0].shape[0]] / 255
