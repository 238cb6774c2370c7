"""Recurrent models of texts.

sources                 texts that are generated, installed, or read from files
recurrent               the encoder
cleaning                wrong labels found by learned weights
hyper_representation    an encoder that many heads share
recurrent_regulariser   a learned penalty
"""
