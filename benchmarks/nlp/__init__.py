"""What constrained_peers.py runs: models, how their functions are counted, the sides, and the judge."""
