"""A pretrained causal language model from a local folder or from the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import model_validator

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab.declaration.consent import CODE, outside
from rlhf_lab.errors import ModelError


class HuggingFace(Component):
    """What `save_pretrained` wrote: config, safetensors weights, tokenizer. No code that comes with weights is run, unless
    spec and command line both say so.

    A hub name is pinned to the commit that `revision` stands for when the experiment is planned, and that commit enters
    the hash of every stage; so does the content of a local folder.
    """

    kind, name = "model", "hf"
    folder: str | None = param(None, "a local folder, relative to the spec")
    hub: str | None = param(None, "a name on the Hugging Face Hub, such as HuggingFaceTB/SmolLM2-135M")
    revision: str = param("main", "with `hub`: branch, tag or, best, commit")
    trust_remote_code: bool = param(
        False, "with `hub` and a commit: use the architecture in the Python files there; --trust-remote-code must allow it"
    )

    @model_validator(mode="after")
    def _one_source(self) -> HuggingFace:
        if (self.folder is None) == (self.hub is None):
            raise ValueError("give either `folder` or `hub`")
        if self.folder is not None and self.revision != "main":
            raise ValueError("`revision` goes with `hub`; a local folder has none")
        if self.trust_remote_code and (self.hub is None or not is_commit(self.revision)):
            raise ValueError("`trust_remote_code` goes with `hub` and a `revision` of 40 digits, so that it is known what runs")
        return self

    def asks(self, spec_folder: Path) -> list[tuple[str, str]]:
        """A folder elsewhere and remote code have to be allowed on the command line."""
        code = [(CODE, f"{self.hub}@{self.revision}")] if self.trust_remote_code else []
        return [*outside(spec_folder, self.folder), *code]

    def prepare(self) -> None:
        """In each process, before a model of this architecture is loaded, from the hub or from a stage's folder."""
        if self.trust_remote_code:
            register_remote_code(self.hub, self.revision)

    def open(self, ctx: Any) -> tuple[Any, Any]:
        if self.folder is not None:
            folder = existing_folder(Path(ctx.spec_folder) / self.folder)
            return load_model(folder), load_tokenizer(folder)
        commit = hub_commit(self.hub, self.revision)
        self.prepare()
        return load_model(self.hub, revision=commit), load_tokenizer(self.hub, revision=commit)

    def fingerprint(self, spec_folder: Path) -> dict[str, str]:
        """blake2b of each file of the folder, or the commit on the hub."""
        if self.folder is not None:
            return folder_hashes(Path(spec_folder) / self.folder)
        return {"commit": hub_commit(self.hub, self.revision)}


def existing_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {folder}; give a path relative to the spec, or use `hub` for a hub name")
    return folder


def folder_hashes(folder: Path) -> dict[str, str]:
    """blake2b of each file directly in the folder, hidden files apart."""
    files = sorted(path for path in existing_folder(folder).iterdir() if path.is_file() and path.name[0] != ".")
    return {path.name: file_hash(path) for path in files}


def file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def hub_commit(name: str, revision: str) -> str:
    """The commit that a revision stands for now; without network, the one it stood for in the local cache."""
    from transformers.utils import cached_file

    try:
        return Path(cached_file(name, "config.json", revision=revision)).parent.name
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot find the model {name!r} at revision {revision!r} on the hub: {one_line(error)}") from None


def is_commit(revision: str) -> bool:
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def register_remote_code(name: str, commit: str) -> None:
    """Makes the classes in the repository's Python files known to transformers, as if they were its own.

    So nothing is ever loaded with trust_remote_code, and the files are those of this commit only. Raises ModelError for
    code from a second repository (whose commit nobody pins) and for code under the name of a built-in architecture.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.utils import cached_file

    settings = json.loads(Path(cached_file(name, "config.json", revision=commit)).read_text(encoding="utf-8"))
    wanted = {auto: settings.get("auto_map", {}).get(auto.__name__) for auto in (AutoConfig, AutoModelForCausalLM, AutoModel)}
    if not wanted[AutoConfig] or not wanted[AutoModelForCausalLM]:
        raise ModelError(f"{name} brings no code for a causal language model; leave out `trust_remote_code`")
    if any("--" in reference for reference in wanted.values() if reference):
        raise ModelError(f"the code of {name} lies in another repository, whose commit is not pinned; it cannot be used")
    kind = settings["model_type"]
    if kind in CONFIG_MAPPING and CONFIG_MAPPING[kind].__module__.startswith("transformers."):
        raise ModelError(f"the code of {name} calls itself {kind!r}, which transformers has built in")
    made = {
        auto: get_class_from_dynamic_module(reference, name, revision=commit, code_revision=commit)
        for auto, reference in wanted.items()
        if reference
    }
    AutoConfig.register(kind, made[AutoConfig], exist_ok=True)
    for auto in (AutoModelForCausalLM, AutoModel):
        if auto in made:
            auto.register(made[AutoConfig], made[auto], exist_ok=True)


def load_model(source: Path | str, **keywords: Any) -> Any:
    """The model in fp32, dropout off. Weights that do not fit the config's architecture are an error."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    settings = {"dtype": torch.float32, "trust_remote_code": False, "output_loading_info": True}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **settings, **keywords)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{source} holds no causal language model that can be loaded: {one_line(error)}") from None
    check_fit(info, source)
    return model.eval()


def check_fit(info: Mapping[str, Any], source: Path | str) -> None:
    """Raises ModelError where transformers would leave weights out, or draw them at random, with a warning only."""
    unfit = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    said = [f"{len(keys)} {kind} (such as {keys[0]})" for kind, keys in unfit.items() if keys]
    if said:
        raise ModelError(f"the weights in {source} do not fit the architecture of its config: {', '.join(said)}")


def load_tokenizer(source: Path | str, **keywords: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **keywords)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(f"{source} holds no tokenizer that can be loaded: {one_line(error)}") from None
    return usable(tokenizer, source)


def usable(tokenizer: Any, source: Path | str) -> Any:
    """The tokenizer with EOS as padding where it has none: masks come from lengths, so what pads changes nothing."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {source} has no EOS token, without which no response ends: set `tokenizer.eos_token` "
            "and save it with `tokenizer.save_pretrained`"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@hookimpl
def register_components(register):
    register(HuggingFace)
