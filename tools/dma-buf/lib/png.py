# SPDX-License-Identifier: GPL-2.0
"""png.py IN.ppm OUT.png: a binary PPM (P6, 8 bits) as PNG."""

import re
import struct
import sys
import zlib

data = open(sys.argv[1], "rb").read()
head = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", data)
if not head:
    sys.exit(sys.argv[1] + ": not a binary PPM")
width, height = int(head[1]), int(head[2])
pixels, line = data[head.end():], width * 3
if len(pixels) != line * height:
    sys.exit(sys.argv[1] + ": cut off")


def chunk(kind, body):
    crc = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


rows = b"".join(b"\0" + pixels[i * line:(i + 1) * line] for i in range(height))
with open(sys.argv[2], "wb") as out:
    out.write(b"\x89PNG\r\n\x1a\n")
    out.write(chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)))
    out.write(chunk(b"IDAT", zlib.compress(rows)))
    out.write(chunk(b"IEND", b""))
