"""A picture that Pillow reads but cannot write."""

import struct
import zlib


def deep_png():
    """The bytes of one pixel with colours of 16 bits, of which Pillow reads 8."""

    def chunk(kind, content):
        checked = kind + content
        ends = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(checked))
        return ends[0] + checked + ends[1]

    one_pixel_of_16_bits = (1, 1, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">2I5B", *one_pixel_of_16_bits))
        + chunk(b"IDAT", zlib.compress(bytes(7)))
        + chunk(b"IEND", b"")
    )
