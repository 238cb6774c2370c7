"""Where the modules of 0.1.0 went: their names work for one release, with a warning, and so do pickles that hold them."""

from __future__ import annotations

from constrained.core.moved import forward

MODULES = {
    "problems.averages": "problems.report.averages",
    "problems.cleaning_baselines": "problems.cleaning.baselines",
    "problems.cleaning_data": "problems.cleaning.data",
    "problems.cleaning_report": "problems.cleaning.report",
    "problems.command": "problems.cli.words",
    "problems.constrained_instance": "problems.instance",
    "problems.distributed": "problems.cli.distributed",
    "problems.hyper_representation": "problems.texts.hyper_representation",
    "problems.labelled_sources": "problems.reweighting.labelled_sources",
    "problems.lv_hba": "problems.coupled",
    "problems.maid": "problems.images",
    "problems.penalties": "problems.tuning.logistic",
    "problems.pictures": "problems.report.pictures",
    "problems.recurrent": "problems.texts.recurrent",
    "problems.recurrent_regulariser": "problems.texts.recurrent_regulariser",
    "problems.reweighting_decoder": "problems.reweighting.decoder",
    "problems.reweighting_study": "problems.reweighting.study",
    "problems.runner": "problems.cli.run",
    "problems.sparse": "problems.tuning.sparse",
    "problems.text_cleaning": "problems.texts.cleaning",
    "problems.text_sources": "problems.texts.sources",
    "problems.tiny_decoder": "problems.reweighting.tiny_decoder",
    "problems.token_sources": "problems.reweighting.token_sources",
}
NAMES = {  # of a module that was taken apart
    "problems.cleaning_report.Paired": "problems.report.spread",
    "problems.cleaning_report.Spread": "problems.report.spread",
    "problems.cleaning_report.paired": "problems.report.spread",
    "problems.cleaning_report.spread": "problems.report.spread",
}

forward(MODULES, NAMES)
