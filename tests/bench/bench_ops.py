"""Time the 3D operations against their obvious versions.

    python -m tests.bench.bench_ops [boxes pooling blocks depthwise]

Both run in one process, taking turns, and the ratio of medians is printed: it holds on another or a
busy machine, where milliseconds do not. One thread, process time, memory kept in the process as in
training, and the same answer of both asserted first.
"""

import argparse

from bonemet_auto.processor import tune_processor

tune_processor()

import torch  # noqa: E402

from tests.bench.bench_blocks import blocks, depthwise  # noqa: E402
from tests.bench.bench_boxes import clustering, suppression  # noqa: E402
from tests.bench.bench_pooling import pooling  # noqa: E402
from tests.bench.side_by_side import print_header  # noqa: E402

OPERATIONS = {
    "boxes": (suppression, clustering),
    "pooling": (pooling,),
    "blocks": (blocks,),
    "depthwise": (depthwise,),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(OPERATIONS)}; all without")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_header()
    for name in options.what or OPERATIONS:
        for operation in OPERATIONS[name]:
            torch.manual_seed(0)
            operation()


if __name__ == "__main__":
    main()
