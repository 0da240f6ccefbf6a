"""Checkpoints: HF weights for any tool, and the training state. Every checkpoint is complete or absent.

checkpoint-N/            N counts optimizer steps over all stages
    config.json, model*.safetensors, files of tokenizer, preprocessors and chat template ...
    adapter/             with lora.rank: the adapters (merged in the weights above)
    trainer_state.json   stage, step within it, seed, best evaluated step
    state/rank-000.safetensors   optimizer state by parameter, for any number of ranks
    complete             written last
last -> the newest;  best.json: the best evaluated checkpoint of each stage
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from videoseek.distributed import all_sum, background_group, barrier
from videoseek.engine import TrainEngine
from videoseek.files import give_usual_modes, partial_path, publish, remove_folder, remove_leftovers, write_json
from videoseek.model.adapters import adapter_weights, has_adapters, merged_weights, save_adapters
from videoseek.model.load import save_pretrained
from videoseek.runtime import rank

_COMPLETE = "complete"
#: All ranks write into one partial folder: the folder has the same name for all ranks.
_MAKER = "ranks"
ADAPTER_FOLDER = "adapter"


class CheckpointError(Exception):
    """A failure to write or resume a checkpoint. The message names the folder."""


@dataclass(frozen=True, slots=True)
class BestStep:
    """The evaluated step of a stage with the highest `metric`, the earlier of equals, and the step's checkpoint."""

    checkpoint: str
    step: int
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class TrainerState:
    """The progress of a run: `step` finished optimizer steps of `stage`, and `global_step` over all stages."""

    stage: str
    step: int
    global_step: int
    seed: int
    world_size: int
    best: BestStep | None = None


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Copies in host memory of all tensors of a folder. Rank 0 alone holds `weights` and `adapters`."""

    weights: dict[str, torch.Tensor]
    adapters: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]

    @classmethod
    @torch.no_grad()
    def take(cls, engine: TrainEngine, *, with_optimizer: bool) -> _Snapshot:
        """Copies the state of the engine. Under ZeRO-3 the weights are gathered here, by all ranks together."""
        optimizer = engine.state() if with_optimizer else {}
        with engine.whole_weights():
            if rank() != 0:
                return cls({}, {}, optimizer)
            model = engine.policy.model
            adapted = has_adapters(model)
            weights = merged_weights(model) if adapted else model.state_dict()
            return cls(_host_copies(weights), _host_copies(adapter_weights(model)) if adapted else {}, optimizer)

    def write(self, folder: Path, engine: TrainEngine, tokenizer: PreTrainedTokenizerFast, source: Path) -> None:
        """Writes this rank's files. Reads the configurations of the engine's model, but none of its tensors."""
        if self.optimizer:
            (folder / "state").mkdir(exist_ok=True)
            save_file(self.optimizer, folder / "state" / f"rank-{rank():03d}.safetensors")
        if rank() == 0:
            save_pretrained(engine.policy.model, tokenizer, folder, source=source, state_dict=self.weights)
            if self.adapters:
                save_adapters(engine.policy.model, folder / ADAPTER_FOLDER, self.adapters, base=source)


def _host_copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies tensors to host memory. Tied tensors share one copy: files hold tied weights once."""
    copies: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in tensors.values():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True).contiguous()
    return {name: copies[tensor.data_ptr(), tensor.shape] for name, tensor in tensors.items()}


class CheckpointWriter:
    """Saves the checkpoints of a run from snapshots, with `in_background` in a thread while training goes on.

    At most one write is under way. Every rank must call the methods in the same order.
    """

    def __init__(self, *, in_background: bool) -> None:
        self._in_background = in_background
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._group = background_group()
        self._pending: Future[None] | None = None

    def save(
        self,
        output_dir: Path,
        engine: TrainEngine,
        tokenizer: PreTrainedTokenizerFast,
        source: Path,
        state: TrainerState,
        keep: int,
    ) -> None:
        """Saves all files for `resume`, then removes all checkpoints but the newest `keep` and the best.

        Waits for the write before. Raises CheckpointError, for example for a full disk, and leaves no partial folder
        behind; a background write raises its error in the next call of any method.
        """
        self.wait()
        final = output_dir / f"checkpoint-{state.global_step}"
        partial = _new_partial(final)
        snapshot = _Snapshot.take(engine, with_optimizer=True)

        def write() -> None:
            with self._published(partial, final):
                snapshot.write(partial, engine, tokenizer, source)
                if rank() == 0:
                    write_json(partial / "trainer_state.json", asdict(state))
            tidy(output_dir, state.stage, state.best, keep)

        self._pending = self._executor.submit(write)
        if not self._in_background:
            self.wait()

    def save_weights(self, folder: Path, engine: TrainEngine, tokenizer: PreTrainedTokenizerFast, source: Path) -> None:
        """Writes the policy's HF weights as a complete folder, with the preprocessor files of `source`, and waits."""
        self.wait()
        partial = _new_partial(folder)
        snapshot = _Snapshot.take(engine, with_optimizer=False)
        with self._published(partial, folder):
            snapshot.write(partial, engine, tokenizer, source)
        barrier()

    def check(self) -> None:
        """Raises the error of a finished background write, if any. Returns at once."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the write under way, if any, and raises its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @contextmanager
    def _published(self, partial: Path, final: Path) -> Iterator[None]:
        """Renames `partial` to `final` after the block of the last rank. Raises CheckpointError if any rank fails."""
        failure: OSError | SafetensorError | None = None
        try:
            yield
        except (OSError, SafetensorError) as error:
            failure = error
        (num_failed,) = all_sum([failure is not None], torch.device("cpu"), self._group)
        try:
            if num_failed:
                raise failure or OSError("another rank could not write its part")
            if rank() == 0:
                (partial / _COMPLETE).write_text("complete\n")
                give_usual_modes(partial)
                publish(partial, final, replace_folder=True)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise _unsaved(final, error) from error


def _new_partial(final: Path) -> Path:
    """Makes one partial folder of `final` for all ranks. Raises CheckpointError.

    First removes leftovers of killed processes beside `final`: a run has exclusive use of its output folder.
    """
    partial = partial_path(final, _MAKER)
    try:
        if rank() == 0:
            final.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(final.parent, _MAKER)
            partial.mkdir()
    except OSError as error:
        raise _unsaved(final, error) from error
    barrier()
    return partial


def _unsaved(final: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{final} could not be saved: {error}; earlier ones are intact")


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


def tidy(output_dir: Path, stage: str, best: BestStep | None, keep: int) -> None:
    """Names the newest checkpoint and the best of `stage`. Removes all but the newest `keep` and every best one.

    A kill in between leaves the rest of this work to the next call.
    """
    if rank() == 0 and (checkpoints := complete_checkpoints(output_dir)):
        link(output_dir / "last", checkpoints[-1])
        best_names = {entry["checkpoint"] for entry in mark_best(output_dir, stage, best).values()}
        for folder in checkpoints[:-keep]:
            if folder.name not in best_names:
                remove_folder(folder, _MAKER)


def mark_best(output_dir: Path, stage: str, best: BestStep | None) -> dict[str, dict[str, Any]]:
    """Writes the best evaluated step of `stage` to best.json, or removes it for None. Returns the file's contents."""
    path = output_dir / "best.json"
    marked = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    entry = {stage: asdict(best)} if best is not None else {}
    changed = {name: value for name, value in marked.items() if name != stage} | entry
    if changed != marked:
        write_json(path, changed)
    return changed


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
        fields = json.loads((folder / "trainer_state.json").read_text())
        best = BestStep(**entry) if (entry := fields.pop("best", None)) else None
        if best is not None and not is_complete(folder.parent / best.checkpoint):
            best = None  # a later best step took its place, and the run was rewound to before that step
        return TrainerState(**fields, best=best)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / 'trainer_state.json'} is not this program's: {error}") from error


def load_optimizer_state(folder: Path, engine: TrainEngine) -> None:
    """Loads this rank's optimizer state, saved by any number of ranks. Raises CheckpointError."""
    files = sorted((folder / "state").glob("rank-*.safetensors"))
    try:
        engine.load_state(files)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder / 'state'} cannot be continued from: {error}") from error
