import numpy as np
from PIL import Image

from vlm.data.index import ROW
from vlm.data.lengths import BARS, LEARNT, PICTURE, counts, write_lengths


def test_every_length_is_counted_once_in_its_bin():
    lengths = np.array([0, 1, 59, 60, 119, 119])
    found, width = counts(lengths)
    assert width == 2
    assert (found.sum(), found[0], found[29], found[30], found[59]) == (6, 2, 1, 1, 2)


def test_the_picture_shows_both_histograms(tmp_path):
    rows = np.zeros(50, ROW)
    rows["tokens"], rows["targets"] = np.arange(50) * 10 + 100, np.arange(50)
    write_lengths(tmp_path, rows, 2048)
    colours = {colour for _, colour in Image.open(tmp_path / PICTURE).getcolors(2**20)}
    assert {BARS, LEARNT} <= colours


def test_no_samples_make_an_empty_picture(tmp_path):
    write_lengths(tmp_path, np.zeros(0, ROW), 2048)
    assert (tmp_path / PICTURE).is_file()
