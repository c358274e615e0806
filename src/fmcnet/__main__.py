"""`python -m fmcnet`, also what `torchrun -m fmcnet` starts."""

from fmcnet.cli import main

main()
