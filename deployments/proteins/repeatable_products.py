"""Products of matrices that are the same to the last bit in every company, on a CPU.

How MKL, which torch multiplies with on x86, adds up a row of a product depends on how many rows there are: fewer than
16 take another kernel, and on several threads the sums of few rows (up to 600) are shared out otherwise than those of
many. So a sequence beside others, and the same alone, differ by rounding. In MKL's strict mode they do not. Intel
promises of it that threads and alignment do not matter ("Obtaining Numerically Reproducible Results" in its guide);
that the number of rows does not either was measured in float32 with AVX2 and AVX-512, for the shapes of ESM2 up to
650 million weights, on one thread and on two. It takes about 3 % more time.
"""

import os
from collections.abc import MutableMapping

STRICT = {"MKL_CBWR": "AUTO,STRICT"}


def set_repeatable_products(environ: MutableMapping[str, str] = os.environ) -> None:
    """Ask MKL for its strict mode in this process, unless the operator chose a mode.

    MKL reads it at its first product, so this is to be called before there was one; afterwards it does nothing.
    """
    for name, value in STRICT.items():
        environ.setdefault(name, value)
