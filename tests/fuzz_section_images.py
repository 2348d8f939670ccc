"""Other forms of a section's image, and of its storage."""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import tifffile
from fuzz_common import choice
from PIL import Image


def entry(case):
    return case.data.uns["spatial"]["s"]


def pixels(case, rng):
    """The same picture in another dtype, range, order of axes, with opacity, as list or dask."""
    picture = entry(case)["images"]["hires"]
    how = choice(rng, "float", "float 255", "u2", "12 bit", "i4", "i8", "rounding", "first", "rgba", "f2", "fortran",
                 "u2 of bytes", "f8", "rgba float", "rgba first", "view")  # fmt: skip
    opaque = np.full((*picture.shape[:2], 1), 255, np.uint8)
    entry(case)["images"]["hires"] = {
        "float": lambda: (picture / 255).astype(np.float32), "f8": lambda: picture / 255,
        "float 255": lambda: picture.astype(np.float32), "u2": lambda: picture.astype(np.uint16) * 257,
        "12 bit": lambda: np.rint(picture * (4095 / 255)).astype(np.uint16), "i4": lambda: picture.astype(np.int32),
        "i8": lambda: picture.astype(np.int64), "rounding": lambda: picture / 255 * (1 + 1e-6),
        "first": lambda: np.ascontiguousarray(picture.transpose(2, 0, 1)), "f2": lambda: (picture / 255).astype("f2"),
        "rgba": lambda: np.concatenate([picture, opaque], axis=2), "fortran": lambda: np.asfortranarray(picture),
        "u2 of bytes": lambda: picture.astype(np.uint16), "view": lambda: np.flip(np.flip(picture, 0).copy(), 0),
        "rgba float": lambda: np.concatenate([picture, opaque], axis=2) / 255,
        "rgba first": lambda: np.concatenate([picture, opaque], axis=2).transpose(2, 0, 1),
    }[how]()  # fmt: skip
    case.told[-1] += f" ({how})"
    return ""


def more_images(case, rng):
    """Others beside it: the finest is meant."""
    library = entry(case)
    picture = library["images"]["hires"]
    scale = library["scalefactors"]["tissue_hires_scalef"]
    how = choice(rng, "lowres", "fullres", "aligned", "renamed", "first")
    low = np.zeros((picture.shape[0] // 4, picture.shape[1] // 4, 3), np.uint8) + np.uint8(90)
    if how in ("lowres", "first"):
        library["images"]["lowres"] = low
        library["scalefactors"]["tissue_lowres_scalef"] = scale / 4
    elif how == "fullres" and scale == 1:
        library["images"] = {"hires": low, "fullres": picture}
        library["scalefactors"]["tissue_hires_scalef"] = 0.25
    elif how == "aligned":  # of no scale: cannot be meant
        library["images"]["detected"] = low
    elif how == "renamed":
        library["images"] = {"he": picture}
        library["scalefactors"]["tissue_he_scalef"] = library["scalefactors"].pop("tissue_hires_scalef")
    if how == "first":
        library["images"] = dict(reversed(library["images"].items()))
    case.told[-1] += f" ({how})"
    return ""


def image_file(case, rng, folder):
    """The picture in a file that the section names, or that is given; other pixels in memory."""
    library = entry(case)
    if library["scalefactors"]["tissue_hires_scalef"] != 1:
        return ""
    picture = library["images"]["hires"]
    how = choice(rng, "source", "source", "path", "given", "gone")
    path = write_picture(picture, Path(folder), rng)
    low = picture[::4, ::4].copy()
    if how in ("source", "gone"):
        library["images"] = {"hires": low} if rng.random() < 0.7 else {}
        library["scalefactors"]["tissue_hires_scalef"] = 0.25
        value = str(path) if how == "source" else str(path) + ".gone.tif"
        library["metadata"] = {"source_image_path": choice(rng, value, np.array([value]), np.array(value))}
    elif how == "path":
        library["images"]["hires"] = choice(rng, str(path), np.array([str(path)], dtype=object))
    else:
        library["images"] = {}
        case.options["image"] = choice(rng, path, str(path))
    case.told[-1] += f" ({how}, {path.name})"
    return (
        r"no image|is not|not there|does not exist|px across|allow|source_image_path|scale factor|coarse"
        if how == "gone"
        else (r"not used|link|refer" if how in ("source", "path") else "")
    )


def halved(picture):
    """The mean of each 2 x 2 px, as scanners write the levels of a pyramid."""
    height, width = (side // 2 * 2 for side in picture.shape[:2])
    blocks = picture[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def write_picture(picture, folder, rng):
    """PNG, TIFF in several layouts, with an orientation tag, gzipped."""
    how = choice(rng, "png", "png.gz", "tif", "tiled", "planar", "oriented", "rgba", "pyramid", "16 bit", "lzw")
    path = folder / f"image.{how if how in ('png', 'png.gz') else 'pyramid.tif' if how == 'pyramid' else 'tif'}"
    if how in ("png", "png.gz"):
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "png")
        path.write_bytes(gzip.compress(stream.getvalue(), 1) if how == "png.gz" else stream.getvalue())
        return path
    options = {"photometric": "rgb"}
    if how == "tiled":
        options["tile"] = (64, 64)
    elif how == "planar":
        picture, options["planarconfig"] = np.ascontiguousarray(picture.transpose(2, 0, 1)), "separate"
    elif how == "oriented":
        number = int(rng.integers(2, 9))
        turned = {2: picture[:, ::-1], 3: picture[::-1, ::-1], 4: picture[::-1], 5: picture.transpose(1, 0, 2),
                  6: np.rot90(picture), 7: picture[::-1, ::-1].transpose(1, 0, 2),
                  8: np.rot90(picture, -1)}  # fmt: skip
        picture, options["extratags"] = np.ascontiguousarray(turned[number]), [(274, "H", 1, number, True)]
    elif how == "rgba":
        picture = np.concatenate([picture, np.full((*picture.shape[:2], 1), 255, np.uint8)], axis=2)
        options["extrasamples"] = ["unassalpha"]
    elif how == "16 bit":
        picture = picture.astype(np.uint16) * 257
    elif how == "lzw":
        options["compression"] = "zlib"
    elif how == "pyramid":
        with tifffile.TiffWriter(path) as tif:
            tif.write(picture, subifds=1, tile=(64, 64), photometric="rgb")
            tif.write(halved(picture), subfiletype=1, tile=(64, 64), photometric="rgb")
        return path
    tifffile.imwrite(path, picture, **options)
    return path


def library_layout(case, rng):
    """`uns["spatial"]` as other packages, R and CELLxGENE leave it."""
    libraries = case.data.uns["spatial"]
    library = libraries["s"]
    how = choice(rng, "is_single", "integer", "arrays of one", "numpy", "text", "extra", "no metadata", "many factors",
                 "nameless", "json")  # fmt: skip
    factors = library["scalefactors"]
    if how == "is_single":
        libraries["is_single"] = choice(rng, True, np.True_, np.array([True]))
    elif how == "integer":
        case.data.uns["spatial"] = {choice(rng, 1, np.int64(1)): library}
    elif how == "arrays of one":
        library["scalefactors"] = {k: np.array([v]) for k, v in factors.items()}
    elif how == "numpy":
        library["scalefactors"] = {k: np.float64(v) for k, v in factors.items()}
    elif how == "text":
        library["scalefactors"] = {k: str(v) for k, v in factors.items()}
    elif how == "extra":
        libraries |= choice(rng, {"note": "text"}, {"version": 2}, {"crs": None}, {"names": ["a", "b"]})
    elif how == "no metadata":
        if "source_image_path" not in library.get("metadata", {}):  # without the path, the image would be lost
            library.pop("metadata", None)
    elif how == "many factors":
        factors |= {"regist_target_img_scalef": 0.1, "bin_size_um": None}
    elif how == "nameless":
        case.data.uns["spatial"] = library
    else:
        library["scalefactors"] = json.dumps({k: float(v) for k, v in factors.items()})
    case.told[-1] += f" ({how})"
    return "scale factor" if how in ("text", "json") else ""


def wrong_scale(case, rng):
    """A scale factor that is missing, none, 0, or another image's.

    A factor of the picture that is too small leaves all spots inside of it: that can be told by a second picture alone.
    """
    library = entry(case)
    factors = library["scalefactors"]
    key = choice(rng, "tissue_hires_scalef", "spot_diameter_fullres")
    value = choice(rng, None, np.nan, 0, -1, "x", factors[key] * 5, factors[key] / 5, "gone")
    if key == "tissue_hires_scalef" and value == factors[key] / 5:
        library["images"]["lowres"] = library["images"]["hires"][::4, ::4].copy()
        factors["tissue_lowres_scalef"] = factors[key] / 4
    if value == "gone":
        del factors[key]
    else:
        factors[key] = value
    case.told[-1] += f" ({key}: {value})"
    return r"scale|spot_diameter|image|wide|um_per_px|px across|outside|platform|coarse"


def odd_pixels(case, rng):
    """Pixels of unknown range, or arrays that are not pixels."""
    library = entry(case)["images"]
    picture = library["hires"]
    how = choice(rng, "nan", "cut", "dark u2", "negative", "text", "transposed", "1d", "empty", "two channels", "list")
    library["hires"] = {
        "nan": lambda: np.where(picture > 200, np.nan, picture / 255), "cut": lambda: (picture / 255).astype(int),
        "dark u2": lambda: picture.astype(np.uint16) * 3, "negative": lambda: picture / 127.5 - 1,
        "text": lambda: picture.astype(str), "transposed": lambda: picture.transpose(1, 0, 2).copy(),
        "1d": lambda: picture.ravel(), "empty": lambda: picture[:0], "two channels": lambda: picture[..., :2],
        "list": lambda: picture.tolist(),
    }[how]()  # fmt: skip
    case.told[-1] += f" ({how})"
    return r"image|picture"


def no_tissue(case, rng):
    """A picture that is no H&E: left out by default, with a warning."""
    picture = entry(case)["images"]["hires"]
    how = choice(rng, "black", "one colour", "fluorescence", "transparent", "grey", "blurred", "white")
    dark = np.zeros_like(picture)
    shape = picture.shape[:2]
    made = {"black": lambda: dark, "one colour": lambda: dark + np.uint8(180), "white": lambda: dark + np.uint8(255),
            "fluorescence": lambda: dark + (rng.random((*shape, 1)) < 0.1).astype(np.uint8) * np.uint8([0, 0, 250]),
            "transparent": lambda: np.dstack([picture, np.zeros(shape, np.uint8)]),
            "grey": lambda: picture[:, :, :1].repeat(3, 2),
            "blurred": lambda: np.linspace(90, 220, shape[1]).astype(np.uint8)[None, :, None].repeat(shape[0], 0)
            * np.ones(3, np.uint8) // np.array([1, 2, 1], np.uint8)}[how]()  # fmt: skip
    entry(case)["images"]["hires"] = made
    case.told[-1] += f" ({how})"
    return "does not look like H&E"


IMAGES = (pixels, pixels, more_images, image_file, library_layout, library_layout)
