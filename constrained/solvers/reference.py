"""Old home of other people's solvers: their names work for one release, with a warning."""

from ..core.moved import forward_names

_HOMES = {
    "Ipopt": "constrained.solvers.ipopt",
    "Reference": "constrained.peers.reference",
    "ReferenceState": "constrained.peers.reference",
    "SLSQP": "constrained.solvers.scipy_solvers",
    "TrustConstr": "constrained.solvers.scipy_solvers",
    "View": "constrained.peers.reference",
}
forward_names(__name__, _HOMES)
