"""``import-c2c``: from a released Cache-to-Cache fuser to an adapter folder."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from lcf_lightning.adapter.c2c_files import RECIPE, Recipe, read_fuser, read_recipe
from lcf_lightning.adapter.hub import fetch, is_hub_id
from lcf_lightning.cli.commands import COMMANDS
from lcf_lightning.cli.folders import new_folder, whole_folder
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.errors import AdapterFileError, SettingError
from lcf_lightning.link import identity_of
from lcf_lightning.models.spec import ModelSpec

COMMAND = COMMANDS["import-c2c"]


@dataclass(frozen=True)
class ImportOptions:
    """What to import.

    Attributes:
        source: A folder of C2C's checkpoints, or ``owner/name`` on the hub, such as ``nics-efc/C2C_Fuser``.
        output: Folder to write.
        pair: Which folder of the source, such as ``qwen3_0.6b+qwen2.5_0.5b_Fuser``; null where the source is the pair.
        sharer: The model whose cache is read: hub id or path; null for the recipe's ``teacher_model``.
        receiver: The model whose cache is edited; null for the recipe's ``base_model``.
        dtype: The models': ``bfloat16``, as C2C runs them, ``float32`` or ``float16``.
        revision: Branch, tag or commit of a source on the hub; null for its default branch.
    """

    source: str
    output: str
    pair: str | None = None
    sharer: str | None = None
    receiver: str | None = None
    dtype: str = "bfloat16"
    revision: str | None = None


def import_c2c(args: list[str]) -> None:
    """Write the fuser as an adapter; no weight of a model is loaded."""
    parser = COMMAND.parser()
    parser.add_argument("source", help="A folder of C2C's checkpoints, or owner/name on the hub.")
    parser.add_class_arguments(ImportOptions, skip={"source"})
    options = ImportOptions(**parser.parse_args(args).as_dict())
    output = new_folder(options.output)
    folder = _pair_folder(options)
    recipe = read_recipe(folder)
    adapter = read_fuser(
        folder / "final" if (folder / "final").is_dir() else folder,
        identity_of(ModelSpec(options.sharer or recipe.sharer, dtype=options.dtype)),
        identity_of(ModelSpec(options.receiver or recipe.receiver, dtype=options.dtype)),
        {"prompts": asdict(_prompts(recipe)), "source": "imported from C2C", "command": COMMAND.line(args)},
    )
    with whole_folder(output) as aside:
        adapter.save_pretrained(aside, location=output)
    sys.stdout.write(f"{output}: {adapter.parameter_counts()['total']:,} parameters\n")


def _pair_folder(options: ImportOptions) -> Path:
    """The folder of one pair, fetched where it is on the hub."""
    if is_hub_id(options.source):
        if options.pair is None:
            raise SettingError(
                f"pair=None must be a folder of {options.source}, such as qwen3_0.6b+qwen2.5_0.5b_Fuser."
            )
        files = tuple(f"{options.pair}/{name}" for name in (RECIPE, "final/projector_*"))
        return fetch(options.source, options.revision, files) / options.pair
    if options.revision is not None:
        raise SettingError(f"revision={options.revision!r} must be null: source={options.source!r} is no hub id.")
    folder = Path(options.source) / (options.pair or "")
    if not (folder / RECIPE).is_file():
        pairs = sorted(path.name for path in folder.iterdir() if (path / RECIPE).is_file()) if folder.is_dir() else []
        meant = f"; name one of its pairs with --pair: {', '.join(pairs)}" if pairs else ""
        raise AdapterFileError(f"source={str(folder)!r} holds no {RECIPE} of C2C{meant}.")
    return folder


def _prompts(recipe: Recipe) -> PromptSettings:
    """How C2C writes a chat."""
    return PromptSettings(
        question="{question}",
        answer="{answer}",
        chat=True,
        alignment=recipe.alignment,
        sharer_reads="own" if recipe.aligned else "receiver_tokens",
        stop=None,
    )
