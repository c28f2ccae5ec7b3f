"""Weights of an autoencoder of latent diffusion from elsewhere: safetensors only, never a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harness.problems import Problem, UserError
from harness.untrusted import is_file, is_folder

FILE = "diffusion_pytorch_model.safetensors"
OLDER_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""What checkpoints of older releases call the attention's layers, and what they are called now."""


def pretrained_weights(load: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that `load` names, fitted to a network of one channel whose own are `wanted`.

    load: a safetensors file; a folder that holds `FILE`, itself or in its folder "vae"; or the id of a model on the
          hub, as NAME or NAME@REVISION, taken from the local cache where it is there.

    Raises UserError where nothing can be read, or where it is another network's.
    """
    found = read_safetensors(_locate(load))
    for old, new in OLDER_NAMES.items():
        found = {key.replace(old, new): tensor for key, tensor in found.items()}
    found = {key: _fitted(key, tensor.float(), wanted.get(key)) for key, tensor in found.items()}
    for key in sorted(found.keys() | wanted.keys()):
        if key not in found or key not in wanted or found[key].shape != wanted[key].shape:
            has = f"has shape {tuple(found[key].shape)}" if key in found else "is missing"
            needs = f"needs {tuple(wanted[key].shape)}" if key in wanted else "has no such weight"
            raise UserError(
                Problem(load, f"weight {key} {has}, the network {needs}; set kind, width, multipliers and blocks to it")
            )
    return found


def is_local(load: str) -> bool:
    """Whether it is a file or a folder, there or not, and no model on the hub, whose id is OWNER/NAME."""
    path = Path(load).expanduser()
    by_form = path.is_absolute() or load.startswith(".") or path.suffix == ".safetensors" or load.count("/") != 1
    return by_form or path.exists()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name. Raises UserError where there is none, or it is no safetensors file."""
    if not is_file(path):
        raise UserError(Problem(str(path), "no such file; give a safetensors file"))
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        problem = Problem(str(path), f"it cannot be read as safetensors ({error}); pickled weights are not taken")
        raise UserError(problem) from None


def _locate(load: str) -> Path:
    path = Path(load).expanduser()
    if is_folder(path):
        for place in (path / FILE, path / "vae" / FILE):
            if is_file(place):
                return place
        raise UserError(Problem(load, f"the folder has no {FILE}, neither itself nor in its folder vae"))
    return path if is_local(load) else _download(load)


def _download(model: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, _, revision = model.partition("@")
    try:
        try:
            return Path(hf_hub_download(name, FILE, revision=revision or None, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(hf_hub_download(name, FILE, revision=revision or None))
    except Exception as error:  # its errors have no common base: names that cannot be, networks, missing files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = Problem(model, f"no such file or folder here, and the hub did not give {FILE}: {reason}")
        raise UserError(problem) from None


def _fitted(key: str, tensor: Tensor, wanted: Tensor | None) -> Tensor:
    """The tensor, its colour channels summed (of the input) or averaged (of the output) where one is wanted."""
    if wanted is None or tensor.shape == wanted.shape:
        return tensor
    if key == "encoder.conv_in.weight":
        return tensor.sum(1, keepdim=True)
    if key in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
        return tensor.mean(0, keepdim=True)
    if tensor.dim() == 4 and tensor.shape[2:] == (1, 1) and wanted.dim() == 2:
        return torch.flatten(tensor, 1)  # older attention has 1 × 1 convolutions for linear layers
    return tensor
