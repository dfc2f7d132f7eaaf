"""What libraries say of themselves, kept from the user."""

import logging
import warnings


def hush_lightning() -> None:
    """Keep what Lightning, PyTorch and flash-attn say of themselves from between the plan and the result."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",
        ".*does not have many workers.*",  # batches are slices of a mapped file
        "The `srun` command is available",  # a run may well be started without it
        "Argument aux_data .* cannot be converted",  # flash-attn 4's own arguments, left out
        "The AccumulateGrad node's stream",  # Lightning wraps the model on a stream of its own
        "Mismatch dtype between input and weight",  # of norms, which the compiler fuses
    ):
        warnings.filterwarnings("ignore", message=message)
