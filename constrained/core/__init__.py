"""What every solver in both packages shares. Lowest first; a file imports only what stands above it here.

deadline                           a limit of time that binds inside of everything
errors, version, status, moved     the exceptions; how a solve ends and what a problem has; old names of modules
options, vec, shared_state         ranges in annotations; a variable of any structure as one vector; the global generators
files                              files written whole or not at all
states, data, sources, stream      states under names of their own; where batches come from
processes, live, digest            several processes; modules that move in place; what tells data from other data
derivatives/                       the only place that differentiates
variables, problem, solver         the user's values as vectors; what a solver is given, and what one is
optimizers, torch_optimizer        steps along a gradient for stochastic methods
event, result, auto, choice        a moment of a run, its end, solvers in turn, which solver a problem gets
checkpoint, checkpoint_folder      a state in a file, or in a folder written by several processes
verdict                            what the problem says of an answer
running                            one run from its start to its verdict, with the only clock
run, callbacks                     the only loop; what watches it
"""
