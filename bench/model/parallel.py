"""Training on several GPUs: torch's FSDP2 over data-parallel ranks, and tensor parallelism by torch's DTensor.

Data: each layer is sharded over the ranks (`fully_shard`, as torchtitan shards Llama): gathered in bf16 before it runs,
its gradients reduced in fp32; the fp32 shards are the masters, and each rank updates its own.
Tensor (Shoeybi et al. 2019, arXiv 1909.08053): heads and the MLP's inner width are split over neighbouring ranks, with
one sum over them after the attention and one after the MLP, and the same two in backward. Every tensor rank computes
the loss of its share of the tokens. Dense models with grouped-query attention and no biases only.

The process group is there already (bench/measure/cell.py joins it).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Replicate

from bench.model.attention import Grouped
from bench.model.layer import Layer
from bench.model.mlp import Dense
from bench.model.parts import Linear
from bench.model.transformer import Transformer


class Parallel:
    """How the ranks of `world` (rank, world_size) share one model. Raises ValueError where they cannot."""

    def __init__(self, world: dict[str, int], tensor: int, precision: str, device: torch.device):
        size = world["world_size"]
        if size % tensor:
            raise ValueError(f"tensor_parallel: expected a divisor of the {size} ranks, got {tensor}")
        mesh = init_device_mesh(device.type, (size // tensor, tensor), mesh_dim_names=("data", "tensor"))
        self.data, self.tensor, self.tensor_ranks = mesh["data"], mesh["tensor"], tensor
        self.data_ranks, self.data_rank = size // tensor, self.data.get_local_rank()
        low = None if precision == "fp32" else torch.bfloat16
        # what layers are told (rotary tables, drawn routing) is fp32 and stays so; activations are `low` already
        self.policy = MixedPrecisionPolicy(
            param_dtype=low, reduce_dtype=torch.float32 if low else None, cast_forward_inputs=False
        )

    def finish(self, module: nn.Module) -> None:
        """Shard a layer once its weights are there, and the model last."""
        if self.tensor_ranks > 1 and isinstance(module, Layer):
            self._split(module)
        if self.tensor_ranks > 1 and isinstance(module, Transformer):
            module.loss_of = self._share_of_loss(module.ops.linear_cross_entropy)
        fully_shard(module, mesh=self.data, mp_policy=self.policy)
        if isinstance(module, Transformer):
            register_fsdp_forward_method(module, "loss")

    def local(self, tensor: Tensor) -> Tensor:
        """The part of a sharded tensor that lies on this rank."""
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def sync(self, network: nn.Module, last: bool) -> None:
        """Reduce gradients over the ranks in the backward to come only if it is the last micro-batch's."""
        assert isinstance(network, FSDPModule)
        network.set_requires_gradient_sync(last)

    # ---------------------------------------------------------------- tensor parallelism

    def _split(self, layer: Layer) -> None:
        attention, mlp = layer.attention, layer.mlp
        if not isinstance(attention, Grouped) or not isinstance(mlp, Dense) or attention.query_norm is not None:
            raise ValueError("tensor_parallel: expected a dense model with grouped-query attention, no QK-norm")
        if attention.out.bias is not None or mlp.down.bias is not None:
            raise ValueError("tensor_parallel: expected no biases: every rank would add, and train, its own")
        if attention.qkv.adapter is not None:
            raise ValueError("tensor_parallel: expected no adapters (lora_rank)")
        if attention.kv_heads % self.tensor_ranks or mlp.up.parts[0] % self.tensor_ranks:
            raise ValueError(f"tensor_parallel: expected key heads and MLP width divisible by {self.tensor_ranks}")
        attention.heads //= self.tensor_ranks
        attention.kv_heads //= self.tensor_ranks
        if attention.sinks is not None:
            attention.sinks = nn.Parameter(self._part(attention.sinks.detach(), 0))
        for linear in (attention.qkv, mlp.up):
            self._split_columns(linear)
        for linear in (attention.out, mlp.down):
            self._split_rows(linear)
        for block in (attention, mlp):
            block.enter, block.leave = self._enter, self._leave

    def _part(self, tensor: Tensor, dim: int) -> Tensor:
        """This rank's contiguous share of a dimension."""
        return tensor.chunk(self.tensor_ranks, dim)[self.tensor.get_local_rank()].clone()

    def _split_columns(self, linear: Linear) -> None:
        """Each packed part's outputs are shared out by itself: a rank's heads keep their queries, keys and values."""
        for name, value in (("weight", linear.weight), ("bias", linear.bias)):
            if value is not None:
                parts = [self._part(part, 0) for part in value.detach().split(linear.parts)]
                setattr(linear, name, nn.Parameter(torch.cat(parts)))
        linear.parts = tuple(part // self.tensor_ranks for part in linear.parts)

    def _split_rows(self, linear: Linear) -> None:
        linear.weight = nn.Parameter(self._part(linear.weight.detach(), 1))

    def _enter(self, x: Tensor) -> Tensor:
        """x as it is; its gradient is the sum of the ranks'."""
        whole = DTensor.from_local(x, self.tensor, [Replicate()], run_check=False)
        return whole.to_local(grad_placements=[Partial()])

    def _leave(self, x: Tensor) -> Tensor:
        """The sum of the ranks' x; its gradient is handed to each as it is."""
        summed = DTensor.from_local(x, self.tensor, [Partial()], run_check=False).redistribute(placements=[Replicate()])
        return summed.to_local(grad_placements=[Replicate()])

    def _share_of_loss(self, loss_of: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Mean loss where each tensor rank does 1/n of the tokens, the head's weight entered like any other."""

        def shared(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
            # a mean of means: every rank counts as many tokens, for no target is left out
            rows, wanted = (self._rows(x) for x in (self._enter(hidden), targets))
            return self._leave(loss_of(rows, self._enter(head), wanted) / self.tensor_ranks)

        return shared

    def _rows(self, x: Tensor) -> Tensor:
        return x.chunk(self.tensor_ranks)[self.tensor.get_local_rank()]


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a number over all ranks."""
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()
