"""Small valid files made foreign: by byte, by line and cell, by value, by header; the same for the same draws."""

from __future__ import annotations

import copy
import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

# What a reader meets at the edges of its rules, as bytes.
NASTY = (
    *(b"", b"\x00", b"\n", b"\r\n", b"\r", b"\t", b" ", b",", b'"', b"'", b"\\", b"/", b".."),
    *(b"../../x", b"/etc/passwd"),
    *(b"-1", b"-0", b"0", b"00", b"1e400", b"-1e400", b"1e-400", b"nan", b"NaN", b"inf", b"-Infinity", b"1_0", b"0x10"),
    *(b"255", b"256", b"65535", b"65536", b"2147483648", b"9007199254740993", b"18446744073709551616", b"9" * 400),
    *(b"9" * 5_000, b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
    *("١", "²", "\u2028", "\u202e", "\x85", "\ufeff", "İ", "\U0010ffff", "e\u0301" * 40),
    *(b"None", b"null", b"true", b"[" * 60, b"{" * 60, b"[" * 100_000, b'{"a":' * 3_000, b"(((("),
    *(b"%s%n", b"${x}", b"{0}"),
    *(b"__import__('os').system('true')", b"x" * 300, b"A" * 140_000),
)  # fmt: skip
TOKENS = tuple(token.encode() if isinstance(token, str) else token for token in NASTY)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 255, 2**31, 2**53, 2**53 + 1, 2**64, 10**400, -(10**400), 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "0", "x" * 500, "\x00", "a\nb", "\u2028", "\ud800", "\U0010ffff", "../..", "nan"),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, [0] * 300, {"\n": "\n"}),
)


def mutated(draws: Random, content: bytes, others: Sequence[bytes] = (), tokens: Sequence[bytes] = TOKENS) -> bytes:
    """`content` after one to four changes of its bytes; `others` are files to splice it with."""
    found = bytearray(content)
    for _ in range(draws.choice((1, 1, 1, 2, 4))):
        at, size = draws.randrange(len(found) + 1), draws.choice((1, 1, 2, 4, 8, 64, 512))
        match draws.randrange(12):
            case 0 | 1 if found:
                found[at % len(found)] ^= 1 << draws.randrange(8)
            case 2 if found:
                found[at % len(found)] = draws.randrange(256)
            case 3:
                found[at:at] = draws.randbytes(size)
            case 4:
                del found[at : at + size]
            case 5:
                found[at:at] = found[at : at + size] * draws.choice((1, 1, 2, 50))
            case 6:
                del found[at:]
            case 7:
                del found[:at]
            case 8:
                other = draws.randrange(len(found) + 1)
                found[at : at + size], found[other : other + size] = found[other : other + size], found[at : at + size]
            case 9:
                found[at : at + draws.choice((0, size))] = draws.choice(tokens)
            case 10 if others:
                other_file = draws.choice(others)
                found[at:] = other_file[draws.randrange(len(other_file) + 1) :]
            case _:
                found[at : at + size] = draws.choice((b"\x00", b"\xff", b" ", b"\n")) * size
    return bytes(found)


def retabled(draws: Random, content: bytes, separator: bytes) -> bytes:
    """Lines and the cells in them dropped, doubled, swapped, filled with something nasty; ends of lines changed."""
    lines = content.split(b"\n")
    for _ in range(draws.choice((1, 1, 2, 3))):
        at = draws.randrange(len(lines))
        cells = lines[at].split(separator)
        cell = draws.randrange(len(cells))
        match draws.randrange(9):
            case 0 | 1 | 2:
                cells[cell] = draws.choice(TOKENS)
            case 3:
                cells[cell] = mutated(draws, cells[cell])
            case 4:
                del cells[cell]
            case 5:
                cells.insert(cell, draws.choice(cells))
            case 6:
                draws.shuffle(cells)
            case 7:
                lines.insert(draws.randrange(len(lines)), lines[at])
                continue
            case _:
                lines = [line + b"\r" for line in lines] if draws.random() < 0.3 else lines[::-1]
                continue
        lines[at] = separator.join(cells)
    return b"\n".join(lines)


def revalued(draws: Random, value: Any) -> Any:
    """A JSON value with one to three of the values in it replaced, dropped, doubled or wrapped."""
    root = [copy.deepcopy(value)]
    for _ in range(draws.choice((1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = [(root, 0)]
        for holder, key in places:
            inner = holder[key]
            keys = inner.keys() if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
            places += [(inner, each) for each in keys]
        # Deeper places are as likely as the root is rare.
        holder, key = draws.choice(places[1:] or places)
        match draws.randrange(8):
            case 0 if holder is not root:
                del holder[key]
            case 1:
                holder[key] = [holder[key]]
            case 2:
                holder[key] = {"x": holder[key]}
            case 3:
                other, its = draws.choice(places)
                holder[key] = copy.deepcopy(other[its]) if other is not root else str(holder[key])
            case 4 if isinstance(holder[key], int | float):
                holder[key] = -holder[key] if draws.random() < 0.5 else holder[key] * 10**20
            case 5 if isinstance(holder, dict):
                holder[draws.choice(("", "x", "schema", "\n", "\ud800"))] = holder.pop(key)
            case _:
                holder[key] = copy.deepcopy(draws.choice(VALUES))
        if not root:
            root = [None]
    return root[0]


def spoiled_json(draws: Random, value: Any) -> bytes:
    """A JSON text with other values, with other bytes, or both."""
    kind = draws.randrange(4)
    text = json.dumps(revalued(draws, value) if kind else value, indent=draws.choice((None, 1)))
    return mutated(draws, text.encode()) if kind < 2 else text.encode()


def repickled(draws: Random, content: bytes, payload: bytes) -> bytes:
    """A zip of torch or NumPy with a member replaced by `payload`, changed, renamed, dropped or doubled."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    return zipped(draws, remembered(draws, members, payload))


def remembered(draws: Random, members: list[tuple[str, bytes]], payload: bytes) -> list[tuple[str, bytes]]:
    """Members of an archive, one or two of them changed."""
    members = list(members)
    for _ in range(draws.choice((1, 1, 2))):
        at = draws.randrange(len(members))
        name, inner = members[at]
        match draws.randrange(9):
            case 0:
                members[at] = (name, payload)
            case 1 | 2 | 3:
                members[at] = (name, mutated(draws, inner, [other for _, other in members]))
            case 4:
                members[at] = (draws.choice(("", "../x", "/x", "x" * 300, f"{name}/", name[:-1], f"./{name}")), inner)
            case 5 if len(members) > 1:
                del members[at]
            case 6:
                members.append((name, draws.choice((inner, b"", payload))))
            case 7:
                other = draws.randrange(len(members))
                members[at], members[other] = (name, members[other][1]), (members[other][0], inner)
            case _:
                draws.shuffle(members)
    return members


def zipped(draws: Random, members: Sequence[tuple[str, bytes]]) -> bytes:
    """A zip of any members, in one of the ways of packing; names may come twice."""
    way = draws.choice((zipfile.ZIP_STORED,) * 5 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, inner in members:
            about = zipfile.ZipInfo(name or "x")
            about.compress_type = way
            # ZipFile.open does not warn of a name that is there already, as writestr does.
            archive.NameToInfo.pop(about.filename, None)
            archive.writestr(about, inner)
    return out.getvalue()


class Member(NamedTuple):
    """A member of a tar archive."""

    name: str
    content: bytes = b""
    type: bytes = tarfile.REGTYPE
    link: str = ""
    # Fields of the header by where they stand; the checksum is made to fit.
    fields: tuple[tuple[int, bytes], ...] = ()
    pax: tuple[tuple[str, str], ...] = ()


OTHERS = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
TYPES = (*OTHERS, tarfile.CONTTYPE, *(bytes([kind]) for kind in b"LKSxgXVZ\x00"))
SIZES = (b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80\x00\x00\x00\x7f" + b"\xff" * 7, b"77777777777\x00",
         b"00000000001\x00",
         b"-0000000001\x00", b"abc\x00" * 3, b"\x00" * 12)  # fmt: skip
PAX = (("size", "-1"), ("size", "9" * 18), ("size", "9" * 5_000), ("size", "x"), ("path", "../../escaped"),
       ("path", ""),
       ("path", "a\nb"), ("path", "x" * 4_000), ("linkpath", "/etc/passwd"), ("GNU.sparse.size", "1" + "0" * 15),
       ("GNU.sparse.major", "1"), ("GNU.sparse.map", "0,1,x"), ("hdrcharset", "BINARY"), ("hdrcharset", "x\udcff"),
       ("mtime", "nan"), ("uid", "x"), ("GNU.sparse.realsize", "9" * 15))  # fmt: skip


def retarred(draws: Random, members: Sequence[Member], escaped: str) -> list[Member]:
    """Members renamed, doubled, dropped, of other kinds, with other headers; `escaped` is a path outside."""
    found = list(members)
    for _ in range(draws.choice((1, 1, 2, 3))):
        at = draws.randrange(len(found))
        member = found[at]
        match draws.randrange(9):
            case 0:
                prefix = draws.choice(
                    ("./", "../", "../../", "/", f"{escaped}/", "a/../", "x/" * 60, "\n", ".", "a\x1b/")
                )
                found[at] = member._replace(name=prefix + member.name)
            case 1:
                names = (escaped, "", "..", "/", "\udcff", "x" * 99, f"{member.name}/", f"{member.name}\n", "9" * 60)
                found[at] = member._replace(name=draws.choice(names))
            case 2:
                found.insert(draws.randrange(len(found) + 1), member)
            case 3 if len(found) > 1:
                del found[at]
            case 4:
                link = draws.choice((escaped, "../../escaped", "/etc/passwd", member.name, found[0].name))
                found[at] = member._replace(type=draws.choice(TYPES), link=link)
            case 5:
                found[at] = member._replace(fields=((124, draws.choice(SIZES)),))
            case 6:
                field = draws.choice(
                    ((100, 8), (108, 8), (136, 12), (148, 8), (156, 1), (257, 8), (345, 155), (386, 24))
                )
                found[at] = member._replace(fields=((field[0], draws.randbytes(field[1])),))
            case 7:
                found[at] = member._replace(pax=tuple(draws.sample(PAX, draws.choice((1, 1, 2, 3)))))
            case _:
                leading = Member(member.name, type=tarfile.SYMTYPE, link=escaped)
                found[at:at] = [leading, member] if draws.random() < 0.5 else [Member("a", type=b"g", content=b"1 =\n")]
    return found


def tarred(members: Sequence[Member], end: bytes = bytes(1_024)) -> bytes:
    """A tar archive of any members."""
    out = []
    for member in members:
        about = tarfile.TarInfo(member.name)
        about.size, about.type, about.linkname = len(member.content), member.type, member.link
        head = bytearray(about.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        if member.fields:
            for at, value in member.fields:
                head[len(head) - 512 + at : len(head) - 512 + at + len(value)] = value
            _check(head)
        if member.pax:
            records = b"".join(_record(key, value) for key, value in member.pax)
            extended = tarfile.TarInfo("x")
            extended.size, extended.type = len(records), tarfile.XHDTYPE
            out += [extended.tobuf(tarfile.GNU_FORMAT), records, bytes(-len(records) % 512)]
        out += [bytes(head), member.content, bytes(-len(member.content) % 512)]
    return b"".join([*out, end])


def _check(head: bytearray) -> None:
    """Make the checksum of the last block fit."""
    block = memoryview(head)[-512:]
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\x00 " % sum(block)


def _record(key: str, value: str) -> bytes:
    rest = b" " + key.encode() + b"=" + value.encode(errors="surrogateescape") + b"\n"
    size = len(rest) + 1
    while len(str(size)) + len(rest) != size:
        size += 1
    return b"%d" % size + rest


def gzipped(draws: Random, content: bytes) -> bytes:
    """In one gzip member or two, with what may stand behind it; now and then broken."""
    if draws.random() < 0.1:
        cut = draws.randrange(len(content) + 1)
        packed = gzip.compress(content[:cut], 1, mtime=0) + gzip.compress(content[cut:], 1, mtime=0)
    else:
        packed = gzip.compress(content, 1, mtime=0)
    if draws.random() < 0.15:
        return mutated(draws, packed)
    return packed + draws.choice((b"",) * 12 + (b"\x00" * 9, b"junk"))


PICTURE = ((b"tEXt", b"a\x00b"), (b"zTXt", b"a\x00\x00" + zlib.compress(bytes(1 << 21), 9)), (b"iCCP", b"a\x00\x00xx"),
           (b"iCCP", b"a\x00\x00" + zlib.compress(bytes(1 << 23), 9)), (b"acTL", struct.pack(">II", 0, 1)),
           (b"acTL", struct.pack(">II", 3, 0)), (b"fcTL", bytes(26)), (b"fdAT", bytes(8)), (b"tRNS", b"\x00"),
           (b"iTXt", b"a\x00\x01\x00\x00\x00" + zlib.compress(bytes(1 << 21), 9)), (b"eXIf", b"MM\x00*\xff"),
           (b"PLTE", bytes(3)), (b"pHYs", b""), (b"gAMA", b"\x00"), (b"IEND", b""), (b"IDAT", b""))  # fmt: skip

PIXELS = tuple(zlib.compress(bytes(size), 9) for size in (0, 100, 1_056, 1_057, 1 << 22))


def redrawn(draws: Random, content: bytes) -> bytes:
    """A PNG whose chunks are changed, doubled, dropped, added, each with the checksum that it should have."""
    chunks, at = [], 8
    while at < len(content):
        (size,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return content
    for _ in range(draws.choice((1, 1, 2, 3))):
        at = draws.randrange(len(chunks))
        kind, inner = chunks[at]
        match draws.randrange(8):
            case 0:
                size = (draws.choice((0, 1, 32, 33, 65_535, 2**31 - 1, 2**32 - 1)) for _ in range(2))
                chunks[0] = (chunks[0][0], struct.pack(">II", *size) + chunks[0][1][8:])
            case 1 if len(chunks[0][1]) > 12:
                head = bytearray(chunks[0][1])
                head[8 + draws.randrange(5)] = draws.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
                chunks[0] = (chunks[0][0], bytes(head))
            case 2 if kind == b"IDAT":
                chunks[at] = (kind, draws.choice(PIXELS))
            case 3:
                chunks[at] = (kind, mutated(draws, inner))
            case 4 if len(chunks) > 1:
                del chunks[at]
            case 5:
                chunks.insert(draws.randrange(len(chunks) + 1), chunks[at])
            case _:
                chunks.insert(draws.randrange(len(chunks) + 1), draws.choice(PICTURE))
    made = [
        struct.pack(">I", len(inner)) + kind + inner + struct.pack(">I", zlib.crc32(kind + inner))
        for kind, inner in chunks
    ]
    return content[:8] + b"".join(made)
