"""What is said before a run and after it.

recommend            which solver, and why; registers the default one
diagnosis, measure   the page of `problem.diagnose()`, and how its numbers are found
memory               bytes that a run will take
retrain              the lower level alone, with x as it was found
plots                pictures of weights
"""
