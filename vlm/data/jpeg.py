"""JPEGs without a fault, decoded by simplejpeg in three quarters of the time that Pillow takes, to the same colours.

Both have libjpeg-turbo behind them; simplejpeg is spared Pillow's own layout of pixels and the copy out of it.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from simplejpeg import decode_jpeg

from vlm.data.pictures import UNDO, orientation_of

MODES = ("L", "RGB")  # not CMYK, whose colours are made by arithmetic of Pillow's own


def jpeg_colours(picture: Image.Image, data: bytes) -> NDArray[np.uint8] | None:
    """Return the colours of a picture that Pillow has opened but not loaded, uint8 (H, W, 3), from its file's bytes.

    None if it is not an upright JPEG in grey or colour, or not one without a fault: that is left to Pillow's judgement.
    """
    if picture.format != "JPEG" or picture.mode not in MODES or orientation_of(picture) in UNDO:
        return None
    try:
        colours = decode_jpeg(data, strict=True)  # which refuses also what libjpeg-turbo only warns of
    except ValueError:
        return None
    return colours if colours.shape[1::-1] == picture.size else None
