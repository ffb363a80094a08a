"""Secrets of an environment that are no secrets, and the search for them in all that a command leaves behind."""

from __future__ import annotations

import base64
import gzip
import re
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from tests.offline import wandb_records

# Names of variables whose values stand in no other place: what writes the environment down writes these down too.
MARKERS = {"LRA_CANARY_OF_THE_ENVIRONMENT": "environment-canary-5fd1c0"}
KEY = "0123c0ffee0123c0ffee0123c0ffee0123c0ffee"
NETRC_KEY = "89abdecade89abdecade89abdecade89abdecade"
WORDS = ("base-url-canary-71", "proxy-canary-72", "aws-canary-73", "hf-canary-74", "gh-canary-75", "db-canary-76")
IN_A_REMOTE = "git-remote-canary-77"
ALL = (KEY, NETRC_KEY, *WORDS, IN_A_REMOTE, *MARKERS.values())
# Nothing listens on the discard port.
NOWHERE = "127.0.0.1:9"


def environment(home: Path) -> dict[str, str]:
    """Variables with a secret each, and a home with a netrc and W&B's settings; none of them leads off this machine."""
    home.mkdir(parents=True, exist_ok=True)
    netrc = home / ".netrc"
    netrc.write_text(
        "".join(f"machine {host}\n  login user\n  password {NETRC_KEY}\n" for host in ("127.0.0.1", "api.wandb.ai"))
    )
    netrc.chmod(0o600)
    base_url, proxy, aws, hub, github, database = WORDS
    proxies = {name: f"http://user:{proxy}@{NOWHERE}" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
    return {
        "HOME": str(home),
        "WANDB_API_KEY": KEY,
        "WANDB_BASE_URL": f"http://user:{base_url}@{NOWHERE}",
        "AWS_SECRET_ACCESS_KEY": aws,
        "HF_TOKEN": hub,
        "GITHUB_TOKEN": github,
        "DATABASE_URL": f"postgres://user:{database}@{NOWHERE}/runs",
        "no_proxy": "",
        "NO_PROXY": "",
        **proxies,
        **{name.lower(): value for name, value in proxies.items()},
        **MARKERS,
    }


def forms(secret: str) -> Iterator[bytes]:
    """What a secret looks like as it is, in a URL, in hexadecimal and within base64 at each of the three offsets."""
    plain = secret.encode()
    yield plain
    yield quote(secret, safe="").encode()
    yield plain.hex().encode()
    for offset in range(3):
        # The characters at both ends hold bits of the neighbours.
        encoded = base64.b64encode(bytes(offset) + plain)[4 if offset else 0 :]
        whole = encoded[: (len(plain) - (3 - offset) % 3) // 3 * 4 - 4]
        yield whole
        yield whole.translate(bytes.maketrans(b"+/", b"-_"))


PATTERN = re.compile(b"|".join(re.escape(form) for secret in ALL for form in sorted(set(forms(secret)))))


def told(data: bytes) -> list[str]:
    """The canaries in `data`, in the form that was found."""
    return sorted({found.decode() for found in PATTERN.findall(data)})


def unpacked(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what they hold: records of W&B, members of an archive, compressed data."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".wandb":
        # A record that spans blocks is cut by their headers.
        yield from (record.SerializeToString() for record in wandb_records(path))
    if zipfile.is_zipfile(BytesIO(data)):
        with zipfile.ZipFile(BytesIO(data)) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    if data[:1] == b"\x78":
        try:
            yield zlib.decompress(data)
        except zlib.error:
            return


def search(folder: Path, but: frozenset[Path] = frozenset()) -> tuple[dict[str, list[str]], int]:
    """Files below `folder` that hold a canary, or have one in their name; and how many bytes were searched."""
    leaks: dict[str, list[str]] = {}
    searched = 0
    for path in sorted(folder.rglob("*")):
        found = told(str(path.relative_to(folder)).encode())
        if path.is_file() and not path.is_symlink() and path not in but:
            for data in unpacked(path):
                searched += len(data)
                found += told(data)
        if found:
            leaks[str(path.relative_to(folder))] = found
    return leaks, searched
