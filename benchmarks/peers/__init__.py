"""The sides of `bilevel_peers.py`: ours and each peer behind one call, x and y in, hypergradient and y out."""
