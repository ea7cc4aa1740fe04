"""Hostile images, archives and labels."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from place import SECRET, Kind, Place, refused

from lightning_dp.images import NPZ, ImageFolder, Parquet, TarShards
from lightning_dp.images.data import idx
from lightning_dp.images.data.pickled import read_pickle
from lightning_dp.images.data.pixels import PixelRules, Pixels

RULES = PixelRules(size=28, other_sizes="crop", other_modes="convert")


def encoded(kind: str = "PNG", size: tuple[int, int] = (28, 28), mode: str = "L") -> bytes:
    content = io.BytesIO()
    Image.new(mode, size).save(content, kind)
    return content.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks: bytes, width: int = 28, height: int = 28) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\nshowpage\n%%EOF\n"
FILES: dict[str, tuple[str, Callable[[Place], bytes], str]] = {
    "EPS named .png": ("x.png", lambda _: EPS, "formats are PNG"),
    "EPS named .jpg": ("x.jpg", lambda _: EPS, "formats are PNG"),
    "PDF named .png": ("x.png", lambda _: b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n%%EOF", "formats are PNG"),
    "WMF named .bmp": ("x.bmp", lambda _: b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(80), "formats are PNG"),
    "FITS named .tiff": (
        "x.tiff",
        lambda _: b"SIMPLE  =                    T".ljust(2880),
        "formats are PNG",
    ),
    "ICNS named .png": ("x.png", lambda _: b"icns\x00\x00\x00\x10" + bytes(8), "formats are PNG"),
    "SVG with a script": ("x.png", lambda _: b"<svg><script>alert(1)</script></svg>", "formats are PNG"),
    "HTML named .gif": ("x.gif", lambda _: b"<html>" + SECRET.encode(), "formats are PNG"),
    "ZIP named .png": ("x.png", lambda _: b"PK\x03\x04" + bytes(40), "formats are PNG"),
    "pickle named .png": ("x.png", lambda place: pickle.dumps(place.pickle_bomb()), "formats are PNG"),
    "script named .png": (
        "x.png",
        lambda place: f"#!/bin/sh\ntouch {place.canary}\n".encode(),
        "formats are PNG",
    ),
    "empty image": ("x.png", lambda _: b"", "can't be read as an image"),
    "PNG cut off": ("x.png", lambda _: encoded(size=(280, 280))[:60], "can't be read as an image"),
    "JPEG cut off": ("x.jpg", lambda _: encoded("JPEG", (280, 280))[:200], "can't be read as an image"),
    "WEBP cut off": ("x.webp", lambda _: encoded("WEBP")[:20], "can't be read as an image"),
    "TIFF cut off": ("x.tif", lambda _: encoded("TIFF")[:30], "can't be read as an image"),
    "PNG of a wrong checksum": ("x.png", lambda _: encoded().replace(b"IDAT", b"IDAU"), "can't be read"),
    "PNG that announces 4 gigapixels": (
        "x.png",
        lambda _: png(width=65000, height=65000),
        "can't be read as an image",
    ),
    "81 megapixels in 10 kB": ("x.png", lambda _: encoded(size=(9000, 9000), mode="1"), "more than 64000000"),
    "GIF that announces 4 gigapixels": (
        "x.gif",
        lambda _: b"GIF89a" + struct.pack("<HHBBB", 65000, 65000, 0, 0, 0),
        "can't be read as an image",
    ),
    "BMP that announces 3 gigapixels": (
        "x.bmp",
        lambda _: encoded("BMP")[:18] + struct.pack("<ii", 55000, 55000) + encoded("BMP")[26:],
        "pixels",
    ),
    "PPM that announces 3 gigapixels": ("x.ppm", lambda _: b"P6 55000 55000 255\n", "pixels"),
    "PPM with a private word for a number": (
        "x.ppm",
        lambda _: b"P6 " + SECRET.encode() + b" 28 255\n",
        "can't be read as an image",
    ),
    "PNG text that unpacks to 20 MB": (
        "x.png",
        lambda _: png(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(20_000_000), 9))),
        "can't be read as an image",
    ),
}


def of_file(name: str, make: Callable[[Place], bytes]) -> Callable[[Place], str]:
    def attack(place: Place) -> str:
        folder = place.folder / "data" / "train" / "a"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(make(place))
        return open_folder(place)

    return attack


def open_folder(place: Place, rules: PixelRules = RULES, **options) -> str:
    source = str(place.folder / "data")
    return refused(lambda: Pixels(ImageFolder(source, **options).open("train"), rules=rules))


def a_link(target: str) -> Callable[[Place], str]:
    def attack(place: Place) -> str:
        folder = place.folder / "data" / "train" / "a"
        folder.mkdir(parents=True)
        (place.folder / "outside.png").write_bytes(encoded())
        os.symlink(target if target.startswith("/") else place.folder / target, folder / "x.png")
        return open_folder(place)

    return attack


def a_fifo(place: Place) -> str:
    folder = place.folder / "data" / "train" / "a"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "x.png")
    return open_folder(place)


def of_another_size(place: Place) -> str:
    """Refused by its header: its pixels can't be decoded at all."""
    folder = place.folder / "data" / "train" / "a"
    folder.mkdir(parents=True)
    (folder / "x.png").write_bytes(png(chunk(b"IDAT", b"nothing"), width=4000, height=4000))
    return open_folder(place, PixelRules(size=28))


def captions(name: str, content: bytes) -> Callable[[Place], str]:
    def attack(place: Place) -> str:
        folder = place.folder / "data" / "train"
        (folder / "a").mkdir(parents=True)
        (folder / "a" / "x.png").write_bytes(encoded())
        (folder / name).write_bytes(content)
        return open_folder(place, captions=True)

    return attack


def shard(members: dict[str, bytes], *, cut: int | None = None, mode: str = "w") -> Callable[[Place], str]:
    def attack(place: Place) -> str:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode=mode) as archive:
            for name, value in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(value)
                archive.addfile(member, io.BytesIO(value))
        return open_shard(place, content.getvalue()[:cut])

    return attack


def open_shard(place: Place, content: bytes) -> str:
    folder = place.folder / "data"
    folder.mkdir()
    (folder / "train-0.tar").write_bytes(content)
    source = TarShards(str(folder), class_names=["a"], user_key="user")
    return refused(lambda: Pixels(source.open("train"), rules=RULES))


def announced(kind: bytes, size: int, name: str = "a.png") -> Callable[[Place], str]:
    def attack(place: Place) -> str:
        member = tarfile.TarInfo(name)
        member.size, member.type = size, kind
        return open_shard(place, member.tobuf(tarfile.GNU_FORMAT) + bytes(4096))

    return attack


def a_shard_elsewhere(place: Place) -> str:
    (place.folder / "data").mkdir()
    (place.folder / "other.tar").write_bytes(bytes(1024))
    os.symlink(place.folder / "other.tar", place.folder / "data" / "train-0.tar")
    return refused(lambda: TarShards(str(place.folder / "data")).open("train"))


def arrays(**content: np.ndarray) -> Callable[[Place], str]:
    def attack(place: Place) -> str:
        packed = io.BytesIO()
        np.savez(packed, **content)
        return open_npz(place, packed.getvalue())

    return attack


def open_npz(place: Place, content: bytes) -> str:
    (place.folder / "data").mkdir()
    (place.folder / "data" / "train.npz").write_bytes(content)
    return refused(lambda: NPZ(str(place.folder / "data"), class_names=["a"]).open("train"))


def objects(place: Place) -> str:
    packed = io.BytesIO()
    np.savez(packed, images=np.array([place.pickle_bomb()], dtype=object))
    return open_npz(place, packed.getvalue())


def packed_tight(place: Place) -> str:
    """A directory that says of a small member that it is 2 GB."""
    packed = io.BytesIO()
    np.savez_compressed(packed, images=np.zeros((2, 28, 28), np.uint8))
    content = bytearray(packed.getvalue())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", 2**31)
    return open_npz(place, bytes(content))


def header(shape: tuple[int, ...]) -> Callable[[Place], str]:
    """An array that announces `shape` and holds nothing."""

    def attack(place: Place) -> str:
        packed = io.BytesIO()
        with (
            zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("images.npy", "w") as file,
        ):
            described = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, described)
        return open_npz(place, packed.getvalue())

    return attack


def parquet(columns: dict[str, list], **options) -> Callable[[Place], str]:
    def attack(place: Place) -> str:
        (place.folder / "data").mkdir()
        pq.write_table(pa.table(columns), place.folder / "data" / "train-0.parquet")
        source = Parquet(str(place.folder / "data"), class_names=["a"], **options)
        return refused(lambda: Pixels(source.open("train"), rules=RULES))

    return attack


def no_parquet(content: bytes) -> Callable[[Place], str]:
    def attack(place: Place) -> str:
        (place.folder / "data").mkdir()
        (place.folder / "data" / "train-0.parquet").write_bytes(content)
        return refused(lambda: Parquet(str(place.folder / "data")).open("train"))

    return attack


def pickled(make: Callable[[Place], bytes]) -> Callable[[Place], str]:
    return lambda place: refused(lambda: read_pickle(make(place), where="batch_1", what="CIFAR"))


def call(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls a function, in protocol 0."""
    return f"c{module}\n{name}\n(S'{argument}'\ntR.".encode()


def of_idx(content: bytes) -> Callable[[Place], str]:
    return lambda _: refused(lambda: idx.read_idx(content, where="train.gz"))


DEEP = b"[" * 200_000
KINDS = [
    *(Kind("image", name, of_file(file, make), answer) for name, (file, make, answer) in FILES.items()),
    Kind("image", "link to a file elsewhere", a_link("outside.png"), "is a link that leads out of"),
    Kind("image", "link to a system file", a_link("/etc/passwd"), "is a link that leads out of"),
    Kind("image", "link to nothing", a_link("nothing.png"), "holds no image"),
    Kind("image", "pipe named .png", a_fifo, "holds no image"),
    Kind("image", "other size, pixels that can't be decoded", of_another_size, "4000 × 4000 pixels"),
    Kind("captions", "no JSON", captions("metadata.jsonl", SECRET.encode()), "is not JSON"),
    Kind("captions", "JSON 200,000 deep", captions("metadata.jsonl", DEEP), "RecursionError"),
    Kind("captions", "no file name", captions("metadata.jsonl", b'{"text": "x"}'), "names no image"),
    Kind(
        "captions",
        "number for a text",
        captions("metadata.jsonl", b'{"file_name": "a/x.png", "text": 7}'),
        "no caption",
    ),
    Kind("captions", "binary CSV", captions("metadata.csv", b"file_name,text\n\xff\xfe,\n"), "can't be read"),
    Kind(
        "captions",
        "200 kB in a cell",
        captions("metadata.csv", b"file_name,text\n" + b"9" * 200_000),
        "can't be read",
    ),
    Kind("tar", "no tar", lambda place: open_shard(place, b"PK" * 600), "uncompressed tar"),
    Kind("tar", "compressed", shard({"a.png": encoded()}, mode="w:gz"), "uncompressed tar"),
    Kind("tar", "cut off", shard({"a.png": encoded(size=(900, 900)), "b.png": encoded()}, cut=1200), "tar"),
    Kind("tar", "8 GB of nothing, as a sparse file", announced(tarfile.GNUTYPE_SPARSE, 2**33 - 1), "spar"),
    Kind("tar", "image of 300 MB announced", announced(tarfile.REGTYPE, 300 * 2**20), "more than 268435456"),
    Kind(
        "tar", "facts of 2 MB", shard({"a.png": encoded(), "a.json": b"1" * 2**21}), "more than 1048576 bytes"
    ),
    Kind(
        "tar", "label of 2 MB", shard({"a.png": encoded(), "a.cls": b"1" * 2**21}), "more than 1048576 bytes"
    ),
    Kind(
        "tar", "facts that are no JSON", shard({"a.png": encoded(), "a.json": SECRET.encode()}), "is not JSON"
    ),
    Kind("tar", "facts 200,000 deep", shard({"a.png": encoded(), "a.json": DEEP}), "is not JSON"),
    Kind("tar", "number of 5,000 digits", shard({"a.png": encoded(), "a.json": b"9" * 5000}), "is not JSON"),
    Kind(
        "tar",
        "private label",
        shard({"a.png": encoded(), "a.json": json.dumps({"label": SECRET}).encode()}),
        "label a text of 18",
    ),
    Kind("tar", "nobody's image", shard({"a.png": encoded(), "a.cls": b"0"}), "has no 'user'"),
    Kind("tar", "EPS in it", shard({"a.png": EPS, "a.json": b'{"user": 1, "label": 0}'}), "formats are PNG"),
    Kind("tar", "link to a shard elsewhere", a_shard_elsewhere, "is a link that leads out of"),
    Kind("npz", "objects that run code", objects, "holds objects"),
    Kind(
        "npz",
        "pickle named .npz",
        lambda place: open_npz(place, pickle.dumps(place.pickle_bomb())),
        "can't be read",
    ),
    Kind("npz", "2 TB announced", header((2**41,)), "announces"),
    Kind("npz", "shape below zero", header((-5, 28, 28)), "announces"),
    Kind("npz", "2 GB in 300 bytes", packed_tight, "made to fill the memory"),
    Kind("npz", "no ZIP", lambda place: open_npz(place, b"nothing"), "can't be read as an npz"),
    Kind(
        "npz",
        "ZIP cut off",
        lambda place: open_npz(place, b"PK\x03\x04" + bytes(20)),
        "can't be read as an npz",
    ),
    Kind("npz", "no images", arrays(pictures=np.zeros(3)), "no 'images'"),
    Kind("npz", "images of numbers with a point", arrays(images=np.zeros((2, 28, 28))), "uint8"),
    Kind(
        "npz",
        "fewer labels than images",
        arrays(images=np.zeros((2, 28, 28), np.uint8), labels=np.zeros(1, int)),
        "2 images and 1 labels",
    ),
    Kind("parquet", "no Parquet", no_parquet(b"nothing"), "can't be read as parquet"),
    Kind("parquet", "cut off", no_parquet(b"PAR1" + bytes(30) + b"PAR1"), "can't be read as parquet"),
    Kind(
        "parquet", "private label", parquet({"image": [encoded()], "label": [SECRET]}), "label a text of 18"
    ),
    Kind("parquet", "no such column", parquet({"image": [encoded()]}), "no column 'label'"),
    Kind("parquet", "no image", parquet({"image": [None], "label": [0]}), "can't be read as an image"),
    Kind(
        "parquet",
        "number for an image",
        parquet({"image": [2**40], "label": [0]}),
        "can't be read as an image",
    ),
    Kind(
        "parquet",
        "caption that is none",
        parquet({"image": [encoded()], "label": [0], "text": [None]}, caption_column="text"),
        "no caption",
    ),
    Kind(
        "pickle", "os.system", pickled(lambda place: pickle.dumps(place.pickle_bomb())), "not part of CIFAR"
    ),
    Kind("pickle", "eval", pickled(lambda _: call("builtins", "eval", "1")), "not part of CIFAR"),
    Kind("pickle", "numpy's own loader", pickled(lambda _: call("numpy", "load", "x")), "not part of CIFAR"),
    Kind(
        "pickle", "cut off", pickled(lambda _: pickle.dumps({"data": [1] * 50})[:30]), "not a batch of CIFAR"
    ),
    Kind("idx", "no gzip", of_idx(b"nothing"), "not a whole gzip file"),
    Kind(
        "idx",
        "more announced than there is",
        of_idx(gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12)),
        "announces",
    ),
    Kind("idx", "gzip cut off", of_idx(gzip.compress(bytes(900))[:15]), "not a whole gzip file"),
]
