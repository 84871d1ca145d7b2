"""Checkpoints: everything that decides the steps to come, written whole or not at all.

One process writes a file. Several write a folder beside it, ``NAME-STEPS``, through
torch.distributed.checkpoint: each its share of the parameters and of the optimizer's state, and
its own random state. Either is written under another name, and takes the place of the one before
when it is complete: the last good checkpoint is never the one being written. Either is read by any
number of processes, however these divide the model.

The folder's ``.metadata`` is a pickle, of torch's making: open only checkpoints of your own.
"""

import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_divided
from torch.distributed.checkpoint.state_dict_saver import save as save_divided
from torch.utils._pytree import tree_leaves

from mkd_fast.checks import train as checks
from mkd_fast.files import make_folder, move_folder, written_whole
from mkd_fast.train.parallel import dealt_as
from mkd_fast.train.processes import ALONE, Processes

_OF_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Mapping[str, Any],
    processes: Processes = ALONE,
) -> None:
    """Write the trained parameters, the optimizer, the random state and ``progress``.

    Frozen parameters are not written: whoever resumes starts from the same model.

    Args:
        path: of the file, or beside which the folder goes.
        model: as it was before it was wrapped, if it was.
        optimizer: of its parameters.
        progress: plain values; ``steps`` says which of two checkpoints is the later one.
        processes: all of which call this.

    Raises:
        OSError: it could not be written, by one process or more; the checkpoint before is kept.
    """
    make_folder(path.parent)
    if processes.size == 1:
        _save_file(path, model, optimizer, progress)
        _remove(_folders(path))
        return
    folder = path.with_name(f"{path.name}-{progress['steps']:08d}")
    partial = folder.with_name(f".{folder.name}.part")
    _save_folder(partial, model, optimizer, progress, processes)
    if processes.is_first:
        before = [*_folders(path), path]
        move_folder(partial, folder)
        _remove(old for old in before if old != folder)


def discard(path: Path, processes: Processes = ALONE) -> None:
    """Remove what ``save`` wrote; rank 0 does."""
    if processes.is_first:
        _remove([*_folders(path), path])


def restore(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    processes: Processes = ALONE,
) -> dict[str, Any] | None:
    """Put back what ``save`` wrote and return its ``progress``; None where there is nothing.

    Arguments as ``save``. A process that had no random state, because there were fewer, keeps the
    one it has.
    """
    folders = processes.gathered(_folders(path))[0]  # as rank 0 sees them
    content = None
    if path.exists():
        content = torch.load(path, map_location="cpu", weights_only=True)
    if folders and (content is None or _steps(folders[-1]) > content["progress"]["steps"]):
        return _restore_folder(folders[-1], model, optimizer, processes)
    if content is not None:
        _restore_file(content, model, optimizer, processes)
        return dict(content["progress"])
    return None


def _save_file(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]
) -> None:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    content = {
        "model": {name: p.detach() for name, p in model.named_parameters() if p.requires_grad},
        "optimizer": optimizer.state_dict(),
        "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        "progress": dict(progress),
    }
    with written_whole(path, _num_bytes(content)) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch says something else
                raise error.__context__ from None
            raise


def _num_bytes(content: Any) -> int:
    """Of the tensors in it."""
    return sum(leaf.nbytes for leaf in tree_leaves(content) if isinstance(leaf, torch.Tensor))


def _restore_file(
    content: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(dealt_as(content["model"][name], parameter))
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    states = content["optimizer"]["state"]
    for number, state in states.items():
        states[number] = {key: dealt_as(value, trained[number]) for key, value in state.items()}
    optimizer.load_state_dict(content["optimizer"])
    if processes.is_first:
        torch.set_rng_state(content["random"]["cpu"])
        if torch.cuda.is_available() and content["random"]["cuda"]:
            torch.cuda.set_rng_state_all(content["random"]["cuda"])


def _save_folder(
    partial: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Mapping[str, Any],
    processes: Processes,
) -> None:
    if processes.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(partial)
    processes.wait_for_all()
    content = {
        **_divided(model, optimizer),
        "random": {str(processes.rank): _own_random_state(model)},
        "progress": dict(progress),
    }
    try:
        save_divided(content, checkpoint_id=partial, process_group=processes.hosts)
    except CheckpointException as error:
        processes.wait_for_all()
        if processes.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        rank, (cause, _) = min(error.failures.items())
        raise checks.checkpoint_not_written(partial, rank, cause) from error


def _restore_folder(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, processes: Processes
) -> dict[str, Any]:
    reader = FileSystemReader(folder)
    names = reader.read_metadata().state_dict_metadata
    content = _divided(model, optimizer)
    content["progress"] = {
        name.removeprefix("progress."): None for name in names if name.startswith("progress.")
    }
    own = str(processes.rank)
    if f"random.{own}.cpu" in names:
        content["random"] = {own: _own_random_state(model)}
    with warnings.catch_warnings():  # that there is one process
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load_divided(
            content,
            storage_reader=reader,
            process_group=processes.hosts,
            no_dist=processes.size == 1,
        )
    set_state_dict(
        model,
        optimizer,
        model_state_dict=content["model"],
        optim_state_dict=content["optimizer"],
        options=_OF_TRAINED,
    )
    if "random" in content:
        torch.set_rng_state(content["random"][own]["cpu"])
        if "cuda" in content["random"][own]:
            torch.cuda.set_rng_state(content["random"][own]["cuda"], _device(model))
    return dict(content["progress"])


def _divided(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of both by the names of parameters, each process with its part."""
    weights, moments = get_state_dict(model, optimizer, options=_OF_TRAINED)
    return {"model": weights, "optimizer": moments}


def _own_random_state(model: nn.Module) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if (device := _device(model)).type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _folders(path: Path) -> list[Path]:
    """Finished ones, the last written last."""
    return sorted(path.parent.glob(f"{path.name}-*"))


def _steps(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
