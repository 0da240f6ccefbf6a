"""Checkpoints: HF weights that any tool loads, this project's state beside them, complete or not there at all.

checkpoint-N/            N counts optimizer steps over all stages
    config.json, model*.safetensors, tokenizer files ...
    adapter/             with lora.rank: the adapters, which the weights above hold merged
    trainer_state.json   stage, step within it, seed
    state/rank-000.safetensors   optimizer state by parameter; another number of ranks can read it
    complete             written last
"""

from __future__ import annotations

import json
import os
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
from videoseek.files import write_json
from videoseek.model.adapters import has_adapters, merged_weights, save_adapters
from videoseek.model.load import save_pretrained
from videoseek.ranks import rank

_COMPLETE, _PARTIAL = "complete", ".partial"
ADAPTER_FOLDER = "adapter"


class CheckpointError(Exception):
    """A checkpoint that cannot be written or continued from; the message names the folder."""


@dataclass(frozen=True, slots=True)
class TrainerState:
    """Where a run stands: `step` optimizer steps of `stage` are done, `global_step` over all stages."""

    stage: str
    step: int
    global_step: int
    seed: int
    world_size: int


@contextmanager
def _complete_or_nothing(final: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `final` when all ranks are done. Raises CheckpointError."""
    partial = final.with_name(final.name + _PARTIAL)
    try:
        if rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        barrier()
        yield partial
        barrier()
        if rank() == 0:
            (partial / _COMPLETE).write_text("complete\n")
            if final.exists():
                shutil.rmtree(final)
            partial.replace(final)
        barrier()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"{final} could not be saved: {error}; earlier ones are intact") from error


def save_weights(folder: Path, engine: TrainEngine, tokenizer: PreTrainedTokenizerFast, source: Path) -> None:
    """HF weights of the policy as a complete folder; `source` lends its preprocessor files."""
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
            save_adapters(model, folder / ADAPTER_FOLDER)


def save_checkpoint(
    output_dir: Path, engine: TrainEngine, tokenizer: PreTrainedTokenizerFast, source: Path, state: TrainerState
) -> Path:
    """Everything that `resume` needs. Raises CheckpointError (disk full, say) and leaves no partial folder behind."""
    final = output_dir / f"checkpoint-{state.global_step}"
    with _complete_or_nothing(final) as partial:
        _write_weights(partial, engine, tokenizer, source)
        (partial / "state").mkdir(exist_ok=True)
        tensors, extents = engine.state()
        save_file(tensors, partial / "state" / f"rank-{rank():03d}.safetensors", metadata=extents)
        if rank() == 0:
            write_json(partial / "trainer_state.json", asdict(state))
    if rank() == 0:
        link(output_dir / "last", final)
    return final


def link(name: Path, target: Path) -> None:
    """Points `name` at `target`, a sibling, replacing what it pointed at before."""
    fresh = name.with_name(name.name + _PARTIAL)
    fresh.unlink(missing_ok=True)
    os.symlink(target.name, fresh)
    fresh.replace(name)


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    # A kill between the marker and the renaming leaves a whole folder under its temporary name.
    found = [path.parent for path in output_dir.glob(f"checkpoint-*/{_COMPLETE}") if path.parent.suffix != _PARTIAL]
    return sorted(found, key=_global_step)


def _global_step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def is_complete(folder: Path) -> bool:
    return (folder / _COMPLETE).is_file()


def prune(output_dir: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints."""
    if rank() == 0:
        for folder in complete_checkpoints(output_dir)[:-keep]:
            shutil.rmtree(folder)


def discard_after(checkpoint: Path) -> None:
    """Removes the newer checkpoints beside a checkpoint, so that it is the one to go on from."""
    for folder in complete_checkpoints(checkpoint.parent):
        if _global_step(folder) > _global_step(checkpoint):
            shutil.rmtree(folder)


def read_state(folder: Path) -> TrainerState:
    """Raises CheckpointError for a folder that is not a complete checkpoint of ours."""
    if not is_complete(folder) or not (folder / "trainer_state.json").is_file():
        raise CheckpointError(f"{folder} is not a complete checkpoint (no 'complete' marker or trainer_state.json)")
    try:
        state = TrainerState(**json.loads((folder / "trainer_state.json").read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / 'trainer_state.json'} is not this program's: {error}") from error
    return state


def load_optimizer_state(folder: Path, engine: TrainEngine) -> None:
    """Puts this rank's optimizer state back, whatever number of ranks saved it. Raises CheckpointError."""
    files = sorted((folder / "state").glob("rank-*.safetensors"))
    try:
        engine.load_state(files)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder / 'state'} cannot be continued from: {error}") from error
