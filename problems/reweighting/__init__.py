"""Weights of data sources.

problem, labelled_sources                  logistic regression on sources with wrong labels
decoder, tiny_decoder, token_sources       a small language model on sources of tokens
study                                      what other weights reach
"""

from .problem import reweighting_logistic, reweighting_noise

__all__ = ["reweighting_logistic", "reweighting_noise"]
