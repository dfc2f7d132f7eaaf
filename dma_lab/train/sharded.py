"""Fully sharded training (FSDP2): every process holds a part of each weight, gradient and moment.

A layer's weights are gathered before it computes and dropped after it, and of its gradients' mean every process is
handed its part (Zhao et al., arXiv 2304.11277). They are gathered in float32, and autocast does what it does on one
device: a step is that of one device but for the order of sums.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from dma_lab.model import Transformer
from dma_lab.train.parts import gathered, part_of


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's, with the checkpoints of a run on one device: a run goes on from them on any number of devices.

    Tensors are gathered one by one into the memory of the first process, which writes them. Every process reads all of
    them and takes its parts.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._setup_distributed()
        # Of one dimension it needs no groups of processes (on NCCL, connections) but the one that there is.
        self._device_mesh = init_device_mesh(self.root_device.type, (self.world_size,))

    def shard(self, model: Transformer) -> None:
        """Leave this process its part of ``model``, whose losses and scores are asked for as before.

        Gradients of every micro-batch are handed out: kept whole until a step's last one, they would take the room
        that sharding is for.
        """
        for part in (*model.blocks, model):
            fully_shard(part, mesh=self.device_mesh, reshard_after_forward=True)
        for method in ("losses", "nats"):
            register_fsdp_forward_method(model, method)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        state: dict[str, Any] = gathered(self.lightning_module.state_dict(), kept=self.is_global_zero)
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = gathered(optimizer.state_dict(), kept=self.is_global_zero)
        return state

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        ours = module.state_dict()
        parts = {name: part_of(value, ours[name]) for name, value in checkpoint["state_dict"].items()}
        module.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            states = {
                number: {
                    # All but the number of steps is of the weight's shape.
                    name: part_of(value, weights[number]) if value.shape == weights[number].shape else value
                    for name, value in state.items()
                }
                for number, state in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": states})
