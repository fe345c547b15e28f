"""One step of the engine on the device: pack what the step needs, run the model, pick the next tokens.

What lasts between steps lies on the device, a row a slot (a running request): the token sampled last, and the block
table. The host sends one packed tensor a step, reads back the tokens sampled, and waits for nothing in between, so
that the engine can plan the next step while this one runs. A step that only decodes replays a CUDA graph, captured for
a ladder of batch sizes; the places left over are padding: their slot is the bin, and nothing is written for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.measure.clock import now
from bench.model.transformer import Transformer
from bench.serving.paged import PagedCache, View
from bench.serving.request import Request
from bench.serving.scheduler import Piece

LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)


@dataclass
class Launched:
    """A step on its way. `tokens`: one for each piece that samples, in their order, on the host once it has ended."""

    pieces: list[Piece]
    tokens: Tensor
    span: tuple[Any, Any]  # when its device work began and ended: events, or times

    def wait(self) -> tuple[list[int], float]:
        """The tokens, and the seconds of device time the step took."""
        begun, ended = self.span
        if isinstance(ended, float):
            return self.tokens.tolist(), ended - begun
        ended.synchronize()
        return self.tokens.tolist(), begun.elapsed_time(ended) / 1e3


class Runner:
    """`greedy`: every request takes its most likely token, and nothing random is run.

    `routing` (max_model_len, E): drawn routing by position (bench/model/routing.py), where there are experts.
    """

    def __init__(
        self,
        network: Transformer,
        cache: PagedCache,
        *,
        max_num_seqs: int,
        max_model_len: int,
        greedy: bool = True,
        graphs: bool = False,
        routing: Tensor | None = None,
        seed: int = 0,
    ):
        self.network, self.cache, self.greedy, self.bin = network, cache, greedy, max_num_seqs
        self.routing = routing
        self.device = network.embedding.device
        self.size = cache.keys[0].shape[1]
        rows, pages = max_num_seqs + 1, -(-max_model_len // self.size)
        self.last = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self.table = torch.zeros((rows, pages), dtype=torch.int32, device=self.device)
        self.temperature = torch.zeros(rows, dtype=torch.float32, device=self.device)
        self.top_p = torch.ones(rows, dtype=torch.float32, device=self.device)
        self.random = torch.Generator(self.device).manual_seed(seed)
        self.logits: Tensor | None = None  # of the rows sampled last
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = {}
        if graphs:
            self._capture_ladder(max_num_seqs)

    @torch.no_grad()
    def launch(self, pieces: list[Piece]) -> Launched:
        """Send a step to the device: those that decode stand first. Does not wait where the device is a GPU."""
        begun = self._mark()
        self._tell_tables(pieces)
        decodes = sum(piece.decode for piece in pieces)
        size = next((n for n in self._graphs if n >= len(pieces)), None) if decodes == len(pieces) else None
        tokens = self._run(pieces, decodes) if size is None else self._replay(pieces, size)
        if self.device.type == "cuda":
            host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            tokens = host.copy_(tokens, non_blocking=True)
        return Launched(pieces, tokens, (begun, self._mark()))

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _send(self, numbers: np.ndarray) -> Tensor:
        """Host numbers as a tensor on the device, without waiting."""
        host = torch.from_numpy(numbers)
        return host if self.device.type != "cuda" else host.pin_memory().to(self.device, non_blocking=True)

    def _tell_tables(self, pieces: list[Piece]) -> None:
        """Write the blocks that requests got since their last step, and how new ones sample."""
        places: list[int] = []
        blocks: list[int] = []
        new: list[Request] = []
        width = self.table.shape[1]
        for piece in pieces:
            request, told = piece.request, piece.request.told
            if told == len(request.blocks):
                continue
            if not told:
                new.append(request)
            places += range(request.slot * width + told, request.slot * width + len(request.blocks))
            blocks += request.blocks[told:]
            request.told = len(request.blocks)
        if places:
            at, value = self._send(np.array([places, blocks], dtype=np.int64))
            self.table.view(-1)[at] = value.int()
        if new and not self.greedy:
            slots = self._send(np.array([request.slot for request in new], dtype=np.int64))
            how = self._send(np.array([(r.temperature, r.top_p) for r in new], dtype=np.float32))
            self.temperature[slots], self.top_p[slots] = how[:, 0], how[:, 1]

    def _place(self, request: Request, position: int) -> int:
        return request.blocks[position // self.size] * self.size + position % self.size

    def _run(self, pieces: list[Piece], decodes: int) -> Tensor:
        """Any step, eagerly."""
        counts = np.array([piece.count for piece in pieces])
        ends = np.cumsum(counts)
        positions = np.concatenate([np.arange(piece.start, piece.start + piece.count) for piece in pieces])
        places = np.concatenate([self._places(piece) for piece in pieces])
        # a decoding token stands on the device; 0 stands in for it here
        ids = [piece.request.tokens(piece.start, piece.start + piece.count) for piece in pieces[decodes:]]
        known = np.concatenate([np.zeros(decodes, dtype=np.int32), *ids])
        slots = np.array([piece.request.slot for piece in pieces])
        sampling = np.array([piece.samples for piece in pieces])
        parts = [known, positions, places, slots, positions[ends - 1] + 1, ends[sampling] - 1, slots[sampling]]
        parts.append(np.concatenate(([0], np.cumsum(counts[decodes:]))))
        sent = self._send(np.concatenate(parts).astype(np.int64)).split([len(part) for part in parts])
        tokens, at, where, slot, lengths, rows, sampled, cut = sent
        if decodes:
            tokens = torch.cat((self.last[slot[:decodes]], tokens[decodes:]))
        table = self.table[slot]
        view = View(decodes, lengths.int(), table)
        if len(pieces) > decodes:
            view.ends, view.longest = cut.int(), int(counts[decodes:].max())
        if self.cache.latent:
            view.token_lengths = (at + 1).int()
            view.token_table = table.repeat_interleave(self._send(counts.astype(np.int64)), 0, output_size=len(known))
        self.cache.view = view
        self.logits = self._forward(tokens[None], at[None], where, rows)
        return self._sample(self.logits, sampled)

    def _forward(self, tokens: Tensor, positions: Tensor, places: Tensor, rows: Tensor | None = None) -> Tensor:
        routing = None if self.routing is None else self.routing[positions.flatten()]
        return self.network.cached(tokens, positions, self.cache, places, routing, rows)

    def _places(self, piece: Piece) -> np.ndarray:
        if piece.count == 1:
            return np.array([self._place(piece.request, piece.start)])
        first, last = piece.start // self.size, (piece.start + piece.count - 1) // self.size
        blocks = np.array(piece.request.blocks[first : last + 1])
        inside = np.arange(piece.start, piece.start + piece.count) - first * self.size
        return np.asarray(blocks[inside // self.size] * self.size + inside % self.size)

    def _sample(self, logits: Tensor, slots: Tensor, uniform: Tensor | None = None) -> Tensor:
        """The next token of each row of logits (R, V); it becomes the last of its slot."""
        if self.greedy:
            tokens = logits.argmax(-1)
        else:
            if uniform is None:
                uniform = torch.rand(len(slots), device=self.device, generator=self.random)
            how = {"temperature": self.temperature[slots], "top_p": self.top_p[slots]}
            tokens = self.network.ops.sampling(logits, uniform, **how).long()
        self.last.index_copy_(0, slots, tokens)
        return tokens

    def _decode(self, given: Tensor, uniform: Tensor) -> Tensor:
        """A step that only decodes: given (4, B) holds positions, places, slots and lengths."""
        positions, places, slots, lengths = given
        self.cache.view = View(len(slots), lengths.int(), self.table[slots])
        if self.cache.latent:
            self.cache.view.token_lengths, self.cache.view.token_table = lengths.int(), self.table[slots]
        tokens = self.last[slots]
        self.logits = self._forward(tokens[:, None], positions[:, None], places)
        return self._sample(self.logits, slots, uniform)

    def _padding(self, size: int) -> np.ndarray:
        return np.repeat(np.array([[0], [-1], [self.bin], [1]], dtype=np.int64), size, axis=1)

    def _replay(self, pieces: list[Piece], size: int) -> Tensor:
        given = self._padding(size)
        for row, piece in enumerate(pieces):
            request, at = piece.request, piece.start
            given[:, row] = at, self._place(request, at), request.slot, at + 1
        graph, static, uniform, tokens = self._graphs[size]
        static.copy_(self._send(given), non_blocking=True)
        if not self.greedy:
            uniform.uniform_(generator=self.random)
        graph.replay()
        return tokens[: len(pieces)]

    @torch.no_grad()
    def _capture_ladder(self, most: int) -> None:
        """A graph for each size of the ladder up to the first that holds `most`; the largest first, to share memory."""
        sizes = [size for size in LADDER if size < most] + [most]
        pool = None
        for size in reversed(sizes):
            static = torch.from_numpy(self._padding(size)).to(self.device)
            uniform = torch.zeros(size, device=self.device)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):  # compilation, library set-up
                    self._decode(static, uniform)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                tokens = self._decode(static, uniform)
            pool = pool or graph.pool()
            self._graphs[size] = (graph, static, uniform, tokens)
        self._graphs = dict(sorted(self._graphs.items()))
