"""The command line: what words mean, one run, several processes."""
