"""The world of a spec as one JSON file, for programs that do without this package."""

from typing import ClassVar

from rlhf_lab.contracts import Component, hookimpl, param, slot
from rlhf_lab.errors import SpecError
from rlhf_lab.store.files import write_json

SPLITS = ("train", "validation")


class ExportWorld(Component):
    """Writes world.json: vocabulary in the order of the ids, prompts and demonstrations by split, and what gold knows.

    The gold reward says what it knows in `tables()`, such as a score for each word; the equation over them is its own.
    """

    kind, name = "stage", "export_world"
    seed: ClassVar[int] = 0
    gold: slot("reward") = param(..., "the gold reward whose tables are written; it must have some")

    def run(self, ctx):
        if not hasattr(self.gold, "tables"):
            raise SpecError(f"stage {ctx.stage}: reward {self.gold.name!r} has no tables to export; use grammar_gold")
        tokenizer = ctx.base_model[1]
        world = {
            "vocabulary": sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get),
            "special": {name: getattr(tokenizer, f"{name}_token") for name in ("pad", "bos", "eos", "unk")},
            "prompts": {split: ctx.data.prompts(split) for split in SPLITS},
            "demonstrations": {split: [[d.prompt, d.completion] for d in ctx.data.demonstrations(split)] for split in SPLITS},
            **self.gold.tables(),
        }
        write_json(ctx.folder / "world.json", world)
        ctx.log(0, "train", demonstrations=len(world["demonstrations"]["train"]), prompts=len(world["prompts"]["train"]))


@hookimpl
def register_components(register):
    register(ExportWorld)
