"""A teacher larger than memory: its layers run one after another over a block of batches.

What is in memory, in bytes, with b bytes for a number of the model's dtype:

    resident   norms, position tables, task heads: all that is neither a layer nor the vocabulary's;
               on a GPU the input embedding too if it takes a quarter of the memory or less
    stages     the two largest neighbours among layer, layer, ..., layer, output embedding
    states     T tokens of a block (padding included): D b (1 + hidden layers asked for),
               and D b for rows of the input embedding
    work       the largest batch's N tokens: outputs of the widest stage's products, twice

A block is as many batches as keep the sum within ``max_memory_bytes``; the interpreter and its
libraries (about half a gigabyte) come on top. What a block costs, and which size makes reading
free: see ``cost``.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from mkd_fast.checks import streamed as checks
from mkd_fast.files import make_folder
from mkd_fast.teacher.kept import TeacherOutputs
from mkd_fast.teacher.streamed.budget import Budget
from mkd_fast.teacher.streamed.checkpoint import open_checkpoint
from mkd_fast.teacher.streamed.cost import Cost
from mkd_fast.teacher.streamed.embedding import EmbeddingRows
from mkd_fast.teacher.streamed.layers import LayerByLayer, OutputEmbedding
from mkd_fast.teacher.streamed.parts import divide
from mkd_fast.teacher.streamed.reading import Reader, fit_page_cache
from mkd_fast.teacher.streamed.stages import in_turn, largest_pair_bytes
from mkd_fast.teacher.streamed.states import HiddenStates

B = TypeVar("B")


@dataclass(frozen=True)
class _Wanted:
    """What is asked of a run; layers by number."""

    layers: frozenset[int]
    logits: bool
    last_hidden: bool
    autocast: torch.dtype | None


@dataclass(frozen=True)
class _Batch:
    """A batch as the caller gave it, and what the model is called with."""

    given: Any
    inputs: Mapping[str, Tensor]

    @property
    def num_tokens(self) -> int:
        return self.inputs["input_ids"].numel()


@dataclass(frozen=True)
class _Block:
    batches: list[_Batch]
    states: HiddenStates


class StreamedTeacher:
    """A ``transformers`` model that is never in memory as a whole.

    It holds files open and, where weights had to be converted, a folder: close it, or use it in a
    ``with`` statement.

    Args:
        source: model folder or hub name, whose weights are read from the disk for every block.
        model_class: whose ``from_pretrained``, for example ``AutoModelForCausalLM``.
        dtype: of the weights in memory; None for what the checkpoint says.
        device: where it computes.
        max_memory_bytes: for weights, states and work, on that device.
        block_tokens: tokens of a block, padding included; None for as many as the memory holds.
        spill_folder: where states go that the memory does not hold, which happens with
            ``block_tokens`` or huge batches. Without it a GPU's go to the host's memory.
        layer_list: dotted name of the nn.ModuleList of layers, where it is not the only one with
            ``config.num_hidden_layers`` entries.
        past_page_cache: whether layers are read with O_DIRECT; None: if the files are larger than
            half of the machine's memory.
        options: more arguments of ``from_pretrained``.

    Raises:
        ValueError: no such list, weights are missing, or they are quantised.
        RuntimeError: accelerate is not installed.
        OSError: the files cannot be read.

    Numerics:
        On a CPU the outputs are those of the ordinary forward pass of the same batch, bit by bit:
        every operation has the same operands.
    """

    def __init__(
        self,
        source: str | Path,
        model_class: Any,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        max_memory_bytes: int = 2 << 30,
        block_tokens: int | None = None,
        spill_folder: str | Path | None = None,
        layer_list: str | None = None,
        past_page_cache: bool | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        checks.positive("StreamedTeacher", "max_memory_bytes", max_memory_bytes)
        checks.positive("StreamedTeacher", "block_tokens", block_tokens)
        self.device = torch.device(device)
        self._max_memory_bytes, self._block_tokens = max_memory_bytes, block_tokens
        if spill_folder is not None:
            make_folder(Path(spill_folder))
        with ExitStack() as opened:
            folder = tempfile.TemporaryDirectory(prefix="mkd_fast-", dir=spill_folder)
            scratch = Path(opened.enter_context(folder))
            self._spill_folder = None if spill_folder is None else scratch
            checkpoint = open_checkpoint(source, model_class, dtype, scratch, options or {})
            paths = {weight.stored.path for weight in checkpoint.weights.values()}
            if past_page_cache is None:
                past_page_cache = not fit_page_cache(paths)
            kind = self.device.type
            self._reader = Reader(paths, past_page_cache=past_page_cache, device=kind)
            opened.callback(self._reader.close)
            self._own_reader = Reader(paths)  # of this thread: each has a buffer
            opened.callback(self._own_reader.close)
            self.model, self._weights = checkpoint.model, checkpoint.weights
            # a GPU would wait for the CPU's look-ups; a CPU looks up where the rows lie
            largest_table = 0 if self.device.type == "cpu" else max_memory_bytes // 4
            self._parts = divide(self.model, checkpoint.weights, layer_list, largest_table)
            self._prepare()
            self._opened = opened.pop_all()

    def _prepare(self) -> None:
        """Put in place what stays, and take over the modules whose weights come and go."""
        parts, output = self._parts, self.model.get_output_embeddings()
        self._layers = LayerByLayer(self.model, parts.layer_modules)
        self._output = None if output is None else OutputEmbedding(output)
        table = parts.table
        self._rows = None if table is None else EmbeddingRows(table, self._own_reader, self.device)
        for module in self.model.modules():
            if table is None or module is not table.owner:  # which stays on the CPU
                for name, buffer in module.named_buffers(recurse=False):
                    setattr(module, name, buffer.to(self.device))
        resident = torch.empty(parts.resident.num_bytes, dtype=torch.uint8, device=self.device)
        parts.resident.set(parts.resident.read(self._reader, resident))

    def close(self) -> None:
        """Close the files and remove what was converted."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def num_layers(self) -> int:
        """Of the list that is streamed."""
        return len(self._parts.layers)

    def cost(self, *, wants_logits: bool = True) -> Cost:
        """What a block costs, whatever its size."""
        stages = self._parts.stages(with_head=wants_logits)
        return Cost(
            block_bytes=sum(stage.stored_bytes for stage in stages),
            flops_per_token=sum(2.0 * stage.num_products for stage in stages),
        )

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight ``[V, D]`` and bias of the output embedding, in memory on the CPU.

        Raises:
            ValueError: the model has none.
        """
        values = {}
        for weight in self._parts.head.weights:
            values[weight.name] = torch.empty_like(weight.empty, device="cpu")
            self._own_reader.read(weight.stored, values[weight.name].detach())
        if "weight" not in values:
            raise checks.no_output_embedding("StreamedTeacher.head", type(self.model).__name__)
        return values["weight"], values.get("bias")

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The model's ``state_dict`` without tied weights, one at a time in memory, on the CPU."""
        tied = set(self.model.all_tied_weights_keys)
        for name, tensor in self.model.state_dict().items():
            if name in tied:
                continue
            if (weight := self._weights.get(name)) is not None:
                tensor = torch.empty_like(weight.empty, device="cpu")
                self._own_reader.read(weight.stored, tensor.detach())
            yield name, tensor

    def run(
        self,
        batches: Iterable[B],
        *,
        hidden_layers: Sequence[int] = (),
        wants_logits: bool = True,
        wants_last_hidden: bool = False,
        autocast: torch.dtype | None = None,
    ) -> Iterator[tuple[B, TeacherOutputs]]:
        """Run the teacher over batches, a block of them at a time; one run at a time.

        Args:
            batches: objects or mappings with ``input_ids`` and ``attention_mask`` ``[B, S]``. Each
                is run as it is: what is padded with what is the caller's choice.
            hidden_layers: as ``transformers`` numbers hidden states, without negative numbers: 0
                the embeddings, i what layer i hands on.
            wants_logits: False leaves the output embedding out, which is then not read.
            wants_last_hidden: whether to keep what goes into the output embedding.
            autocast: dtype of autocast; None for the model's own.

        Yields:
            Each batch as it was given, in the order given, with its outputs on the device.

        Raises:
            ValueError: the memory does not hold two layers or one block, a layer that does not
                exist is asked for, or the model's layers do not run once each in order.
            OSError: a file cannot be read, or states cannot be written.
        """
        if any(not 0 <= layer <= self.num_layers for layer in hidden_layers):
            raise checks.no_such_hidden_state(hidden_layers, self.num_layers)
        if wants_last_hidden and self._output is None:
            raise checks.no_output_embedding("StreamedTeacher.run", type(self.model).__name__)
        wanted = _Wanted(frozenset(hidden_layers), wants_logits, wants_last_hidden, autocast)
        return self._run(batches, wanted)

    def _run(self, batches: Iterable[B], wanted: _Wanted) -> Iterator[tuple[B, TeacherOutputs]]:
        budget = self._budget(wanted)
        blocks = (
            _Block(block, HiddenStates(budget.bytes_for_states(block), self._spill_folder))
            for block in budget.blocks(map(_as_batch, batches))
        )
        stages = self._parts.stages(with_head=wanted.logits)
        work = (((block, n), stage) for block in blocks for n, stage in enumerate(stages))
        for block, number in in_turn(work, self._reader, self.device):
            if number == 0 and self._rows is not None:
                self._rows.forget()
            if number < self.num_layers:
                self._run_layer(block, number, wanted)
            else:
                yield from self._run_rest(block, wanted)

    def _budget(self, wanted: _Wanted) -> Budget:
        parts, is_cpu = self._parts, self.device.type == "cpu"
        stages = parts.stages(with_head=wanted.logits)
        state = self.model.config.get_text_config().hidden_size * self.model.dtype.itemsize
        return Budget(
            max_memory_bytes=self._max_memory_bytes,
            weight_bytes=parts.resident.num_bytes + largest_pair_bytes(stages),
            row_bytes=parts.table.empty[0].nbytes if parts.table is not None and is_cpu else 0,
            max_rows=len(parts.table.empty) if parts.table is not None else 0,
            state_bytes=state * (1 + len(wanted.layers - {self.num_layers})),
            work_bytes=max(stage.work_bytes for stage in stages),
            block_tokens=self._block_tokens,
            can_spill=self._spill_folder is not None or not is_cpu,
        )

    def _run_layer(self, block: _Block, number: int, wanted: _Wanted) -> None:
        states = block.states
        for index, batch in enumerate(block.batches):
            state = states.take(index, self.device) if number else None
            with self._computing(wanted):
                step = self._layers.run_layer(number, state, self._inputs(batch))
            if number == 0 and 0 in wanted.layers:
                states.put((index, 0), step.given)
            if number + 1 < self.num_layers and number + 1 in wanted.layers:
                states.put((index, number + 1), step.made)
            states.put(index, step.made)

    def _run_rest(self, block: _Block, wanted: _Wanted) -> Iterator[tuple[Any, TeacherOutputs]]:
        last, states = self.num_layers, block.states
        if self._output is not None:
            self._output.is_left_out = not wanted.logits
        for index, batch in enumerate(block.batches):
            inputs = self._inputs(batch)
            if last in wanted.layers:
                inputs["output_hidden_states"] = True
            with self._computing(wanted):
                outputs = self._layers.run_rest(states.take(index, self.device), inputs)
            hidden = {n: states.take((index, n), self.device) for n in wanted.layers - {last}}
            if last in wanted.layers:
                hidden[last] = outputs.hidden_states[-1]
            logits = getattr(outputs, "logits", None) if wanted.logits else None
            given = self._output.take() if self._output is not None else None
            last_hidden = given if wanted.last_hidden else None
            yield batch.given, TeacherOutputs(logits, hidden, last_hidden)

    def _inputs(self, batch: _Batch) -> dict[str, Any]:
        return {name: tensor.to(self.device) for name, tensor in batch.inputs.items()}

    @contextmanager
    def _computing(self, wanted: _Wanted) -> Iterator[None]:
        casting = (
            nullcontext()
            if wanted.autocast is None
            else torch.autocast(self.device.type, wanted.autocast)
        )
        with torch.inference_mode(), casting:
            yield


def _as_batch(batch: Any) -> _Batch:
    is_mapping = isinstance(batch, Mapping)
    names = ("input_ids", "attention_mask")
    inputs = {name: batch[name] if is_mapping else getattr(batch, name) for name in names}
    return _Batch(batch, inputs)
