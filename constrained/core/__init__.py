"""What every solver in both packages shares: vectors, derivatives, samplers, options, the loop, the checkpoint."""
