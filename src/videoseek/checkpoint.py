"""Checkpoints: HF weights for any tool, and the training state. Every checkpoint is complete or absent.

checkpoint-N/            N counts optimizer steps over all stages
    config.json, model*.safetensors, files of tokenizer, preprocessors and chat template ...
    adapter/             with lora.rank: the adapters (merged in the weights above)
    trainer_state.json   stage, step within it, seed
    state/rank-000.safetensors   optimizer state by parameter, for any number of ranks
    complete             written last
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from videoseek.distributed import barrier
from videoseek.engine import TrainEngine
from videoseek.files import give_usual_modes, partial_path, publish, remove_folder, remove_leftovers, write_json
from videoseek.model.adapters import has_adapters, merged_weights, save_adapters
from videoseek.model.load import save_pretrained
from videoseek.runtime import rank

_COMPLETE = "complete"
#: All ranks write into one partial folder: the folder has the same name for all ranks.
_MAKER = "ranks"
ADAPTER_FOLDER = "adapter"


class CheckpointError(Exception):
    """A failure to write or resume a checkpoint. The message names the folder."""


@dataclass(frozen=True, slots=True)
class TrainerState:
    """The progress of a run: `step` finished optimizer steps of `stage`, and `global_step` over all stages."""

    stage: str
    step: int
    global_step: int
    seed: int
    world_size: int


@contextmanager
def _complete_or_nothing(final: Path) -> Iterator[Path]:
    """Yields one partial folder for all ranks, and renames the folder to `final` at the end. Raises CheckpointError.

    First removes leftovers of killed processes beside `final`: a run has exclusive use of its output folder.
    """
    partial = partial_path(final, _MAKER)
    try:
        if rank() == 0:
            final.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(final.parent, _MAKER)
            partial.mkdir()
        barrier()
        yield partial
        barrier()
        if rank() == 0:
            (partial / _COMPLETE).write_text("complete\n")
            give_usual_modes(partial)
            publish(partial, final, replace_folder=True)
        barrier()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"{final} could not be saved: {error}; earlier ones are intact") from error


def save_weights(folder: Path, engine: TrainEngine, tokenizer: PreTrainedTokenizerFast, source: Path) -> None:
    """Writes the policy's HF weights as a complete folder, with the preprocessor files of `source`."""
    with _complete_or_nothing(folder) as partial:
        _write_weights(partial, engine, tokenizer, source)


def _write_weights(folder: Path, engine: TrainEngine, tokenizer: PreTrainedTokenizerFast, source: Path) -> None:
    with engine.whole_weights():
        if rank() != 0:
            return
        model = engine.policy.model
        adapted = has_adapters(model)
        weights = merged_weights(model) if adapted else None
        save_pretrained(model, tokenizer, folder, source=source, state_dict=weights)
        if adapted:
            save_adapters(model, folder / ADAPTER_FOLDER, source)


def save_checkpoint(
    output_dir: Path, engine: TrainEngine, tokenizer: PreTrainedTokenizerFast, source: Path, state: TrainerState
) -> Path:
    """Writes all files for `resume` and returns the folder.

    Raises CheckpointError, for example for a full disk, and leaves no partial folder behind.
    """
    final = output_dir / f"checkpoint-{state.global_step}"
    with _complete_or_nothing(final) as partial:
        _write_weights(partial, engine, tokenizer, source)
        (partial / "state").mkdir(exist_ok=True)
        save_file(engine.state(), partial / "state" / f"rank-{rank():03d}.safetensors")
        if rank() == 0:
            write_json(partial / "trainer_state.json", asdict(state))
    if rank() == 0:
        link(output_dir / "last", final)
    return final


def link(name: Path, target: Path) -> None:
    """Makes `name` a link to its sibling `target`, and replaces an older link atomically."""
    partial = partial_path(name, _MAKER)
    partial.unlink(missing_ok=True)
    partial.symlink_to(target.name)
    publish(partial, name)


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """Returns the complete checkpoints, oldest first."""
    # A kill between marker and renaming leaves a whole folder under its partial name, without a step number.
    folders = [path.parent for path in output_dir.glob(f"checkpoint-*/{_COMPLETE}")]
    return sorted((folder for folder in folders if folder.name.rpartition("-")[2].isdigit()), key=_global_step)


def _global_step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def is_complete(folder: Path) -> bool:
    """Returns whether the folder was saved whole."""
    return (folder / _COMPLETE).is_file()


def prune(output_dir: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints."""
    if rank() == 0:
        for folder in complete_checkpoints(output_dir)[:-keep]:
            remove_folder(folder, _MAKER)


def discard_after(checkpoint: Path) -> None:
    """Removes all checkpoints newer than the given checkpoint, before a resume."""
    for folder in complete_checkpoints(checkpoint.parent):
        if _global_step(folder) > _global_step(checkpoint):
            remove_folder(folder, _MAKER)


def discard_stage(folder: Path) -> None:
    """Removes the weights of a finished stage, if any: the stage runs again."""
    remove_folder(folder, _MAKER)


def read_state(folder: Path) -> TrainerState:
    """Reads trainer_state.json. Raises CheckpointError unless the folder is a complete checkpoint of this program."""
    if not is_complete(folder) or not (folder / "trainer_state.json").is_file():
        raise CheckpointError(f"{folder} is not a complete checkpoint (no 'complete' marker or trainer_state.json)")
    try:
        state = TrainerState(**json.loads((folder / "trainer_state.json").read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / 'trainer_state.json'} is not this program's: {error}") from error
    return state


def load_optimizer_state(folder: Path, engine: TrainEngine) -> None:
    """Loads this rank's optimizer state, saved by any number of ranks. Raises CheckpointError."""
    files = sorted((folder / "state").glob("rank-*.safetensors"))
    try:
        engine.load_state(files)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder / 'state'} cannot be continued from: {error}") from error
