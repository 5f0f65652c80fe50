"""Where bfloat16 is fast, and where it is not."""

import torch


def mixed_precision(device: torch.device) -> torch.autocast:
    """Context in which convolutions and linears run in bfloat16, where the hardware has it.

    bfloat16 keeps float32's range, so no loss scaling is needed. A CPU that emulates it is several
    times slower than in float32; one that has it natively takes about half the time.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported()
    else:
        native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=native)
