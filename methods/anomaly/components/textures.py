"""Latents of textures, with which synthetic anomalies are filled: of photographs in a folder, or drawn at random."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from harness.anomaly import Component, NormalData
from harness.api import Context, MethodError, State, hyper
from harness.problems import Problem, UserError
from harness.untrusted import is_folder, open_regular
from methods.anomaly.components.autoencoder import LatentAutoencoder, load_autoencoder
from methods.anomaly.components.procedural_textures import draw_texture

PROCEDURAL = "procedural"
ENDINGS = (".jpg", ".jpeg", ".png")
LONGEST_SIDE = 16_384  # pixels, ours: what no photograph of a texture has


class TextureLatents(Component):
    """Latents of grey textures, encoded once: the posterior's mean, scaled as latents of slices are.

    They are meant to have about the variance of the slices' latents; theirs is kept as "std" and logged as
    "texture_std".
    """

    id = "texture_latents"
    reference = "REFLECT (Beizaee et al., MICCAI 2025; thesis ch. 5); Cimpoi et al., CVPR 2014 (DTD)"
    notes = (
        "Published: DTD in grey, encoded by the autoencoder of the slices; size and scaling are not stated. Ours: the "
        "size, the posterior's mean, and textures drawn at random where no folder is named."
    )

    autoencoder: LatentAutoencoder = hyper(LatentAutoencoder(), "what encodes", origin="authors' code")
    source: str = hyper(
        PROCEDURAL,
        "procedural: drawn at random; else a folder, searched for JPEG and PNG files in all its folders, such as that "
        "of the Describable Textures Dataset",
        origin="ours; published: the folder of DTD",
    )
    count: int = hyper(
        5640,
        "textures; of a folder with more a random choice, with fewer all",
        origin="as many as DTD has",
        ge=1,
    )
    size: int = hyper(
        320,
        "rows and columns of a texture, at least those of the slices: the central square of a file, enlarged where it "
        "is smaller",
        origin="ours; published nowhere. The smallest images of DTD have about 300",
        ge=8,
    )

    @classmethod
    def example(cls) -> TextureLatents:
        return cls(autoencoder=LatentAutoencoder.example(), count=6, size=64)

    def files(self) -> tuple[str, ...]:
        return () if self.source == PROCEDURAL else (self.source,)

    def components(self) -> dict[str, Component]:
        return {"autoencoder": self.autoencoder}

    def fit(self, data: NormalData, ctx: Context) -> State:
        """Returns "latents", float16 [N, C, size / factor, size / factor], and "std", their standard deviation.

        Raises UserError for a folder that is missing or holds no image, and for a file that cannot be read;
        MethodError for a size that the autoencoder cannot take.
        """
        size, factor = self.size, self.autoencoder.factor
        if size % factor:
            raise MethodError(f"texture_latents: size is {size}, but must be a multiple of {factor}")
        count, texture = pictures(self, ctx.seed)
        autoencoder = load_autoencoder(data.components["autoencoder"], self.autoencoder, ctx.device)
        grid = size // factor
        latents = np.empty((count, autoencoder.latent_channels, grid, grid), np.float16)
        with torch.inference_mode():
            for start in range(0, count, self.autoencoder.batch_size):
                chosen = range(start, min(start + self.autoencoder.batch_size, count))
                pixels = torch.from_numpy(np.stack([texture(i) for i in chosen]))[:, None].to(ctx.device)
                latents[chosen.start : chosen.stop] = autoencoder.encode(pixels).cpu().numpy()
        spread = float(latents.std(dtype=np.float64))
        ctx.log("texture_std", 0, spread)
        return {"latents": latents, "std": spread}


def pictures(textures: TextureLatents, seed: int) -> tuple[int, Callable[[int], np.ndarray]]:
    """How many textures there are, and the function that gives texture i, float32 [size, size] in [0, 1]."""
    if textures.source == PROCEDURAL:
        return textures.count, lambda index: draw_texture(np.random.default_rng([seed, index]), textures.size)
    files = texture_files(Path(textures.source).expanduser())
    if len(files) > textures.count:
        chosen = np.sort(np.random.default_rng(seed).choice(len(files), textures.count, replace=False))
        files = [files[index] for index in chosen]
    return len(files), lambda index: read_texture(files[index], textures.size)


def texture_files(folder: Path) -> list[Path]:
    """All JPEG and PNG files below a folder, in an order that does not depend on the machine.

    Raises UserError where the folder is missing or holds none.
    """
    instead = 'give a folder of JPEG or PNG files, or set source to "procedural"'
    if not is_folder(folder):
        raise UserError(Problem(str(folder), f"no such folder of textures; {instead}"))
    files = [path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file()]
    if not files:
        raise UserError(Problem(str(folder), f"the folder holds no texture; {instead}"))
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def read_texture(path: Path, size: int) -> np.ndarray:
    """The central square of an image in grey, float32 [size, size] in [0, 1]; enlarged where a side is shorter.

    Raises UserError for what is no image, too large, or damaged.
    """
    try:
        with warnings.catch_warnings(), open_regular(path) as file:
            warnings.simplefilter("error")  # Pillow only warns of images that are made to fill the memory
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                if max(image.size) > LONGEST_SIDE:
                    raise ValueError(f"it has {image.width} × {image.height} pixels")
                grey = image.convert("L")
    except (OSError, SyntaxError, ValueError, Warning, Image.DecompressionBombError) as error:
        raise UserError(Problem(str(path), f"it cannot be read as a texture ({error}); mend or remove it")) from None
    shortest = min(grey.size)
    if shortest < size:
        larger = [max(size, round(side * size / shortest)) for side in grey.size]
        grey = grey.resize((larger[0], larger[1]), Image.Resampling.BICUBIC)
    left, top = (grey.width - size) // 2, (grey.height - size) // 2
    square = grey.crop((left, top, left + size, top + size))
    return np.asarray(square, np.float32) / np.float32(255)
