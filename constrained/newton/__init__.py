"""The parts of a Newton step on the KKT conditions.

kkt_system    K as an operator and as a matrix
accuracy      how well K is solved
restoration   the violation minimised, where Newton's step fails
"""
