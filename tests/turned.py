"""Videos filmed with the camera turned, as phones do for portraits."""

import struct
from pathlib import Path


def turn(path: Path, degrees: int = 90) -> None:
    """Let an mp4 file say by how much a player turns it clockwise to show it upright.

    Args:
        path (Path): The file, as OpenCV writes it.
        degrees (int): 90, 180 or 270.
    """
    path = Path(path)
    data = bytearray(path.read_bytes())
    place = data.find(b'tkhd')
    place += 8 + (32 if data[place + 4] == 1 else 20) + 16
    one = 0x10000
    width, height = struct.unpack_from('>2i', data, place + 36)  # 16.16 fixed point
    a, b, c, d, x, y = {
        90: (0, one, -one, 0, height, 0),
        180: (-one, 0, 0, -one, width, height),
        270: (0, -one, one, 0, 0, width),
    }[degrees]
    struct.pack_into('>9i', data, place, a, b, 0, c, d, 0, x, y, 0x40000000)
    path.write_bytes(data)
