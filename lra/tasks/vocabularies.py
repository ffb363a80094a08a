"""The vocabularies in which every byte is a token."""

from __future__ import annotations

# Printable ASCII as itself, every other byte as its escape.
BYTES = tuple(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in range(256))
# The grey levels of pictures.
PIXELS = tuple(map(str, range(256)))
