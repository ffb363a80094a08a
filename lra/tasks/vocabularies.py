"""Vocabularies that several tasks share."""

from __future__ import annotations

# A grey image's token ids are its pixel values.
PIXELS = tuple(map(str, range(256)))
